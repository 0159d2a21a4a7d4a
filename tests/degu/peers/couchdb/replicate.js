// Copies a database in memory to a server and back, with a client certificate:
// node replicate.js URL CERT-FILE KEY-FILE CA-FILE
'use strict';

const fs = require('fs');
const https = require('https');
const PouchDB = require('pouchdb-core')
  .plugin(require('pouchdb-adapter-memory'))
  .plugin(require('pouchdb-adapter-http'))
  .plugin(require('pouchdb-replication'));

const [url, cert, key, ca] = process.argv.slice(2);
const agent = new https.Agent({
  cert: fs.readFileSync(cert),
  key: fs.readFileSync(key),
  ca: fs.readFileSync(ca),
  checkServerIdentity: () => undefined, // the CA signs for one user's machines only
  keepAlive: true,
});
const remote = new PouchDB(url, {
  fetch: (request, options) => PouchDB.fetch(request, { ...options, agent }),
});
const here = new PouchDB('here');
const back = new PouchDB('back');

(async () => {
  for (let n = 0; n < 30; n++) {
    await here.put({ _id: `${n}`, _attachments: { 'a.txt': { content_type: 'text/plain', data: 'b2xpdmVz' } } });
  }
  await here.replicate.to(remote);
  await back.replicate.from(remote);
  const document = await back.get('29', { attachments: true });
  console.log((await back.info()).doc_count, document._attachments['a.txt'].data);
  agent.destroy();
})();
