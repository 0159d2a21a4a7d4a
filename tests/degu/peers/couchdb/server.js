// A CouchDB-compatible server, its databases in memory: node server.js SOCKET-PATH [KEEP-ALIVE-MS]
'use strict';

const express = require('express');
const expressPouchDB = require('express-pouchdb');
const PouchDB = require('pouchdb-core')
  .plugin(require('pouchdb-adapter-memory'))
  .plugin(require('pouchdb-adapter-http'))
  .plugin(require('pouchdb-mapreduce'))
  .plugin(require('pouchdb-replication'));

const [path, keepAliveMs = '5000'] = process.argv.slice(2);
const couchdb = expressPouchDB(PouchDB, {
  mode: 'minimumForPouchDB',
  overrideMode: { include: ['routes/replicate'] },
});
const server = express().use(couchdb).listen(path);
server.keepAliveTimeout = Number(keepAliveMs);
