"""Bytes to values and back, in JSON and in msgpack. PURE.

A message goes through two steps, and neither trusts its sender:

1. `Codec.decode` turns bytes into plain values (None, bool, int, float, str, list, dict; in msgpack
   also bytes and datetime), whatever the bytes: nothing recurses deeper than MAX_NESTING, nothing
   is allocated because a length was claimed, and values are counted, up to MAX_VALUES, before any
   of them is built.
2. A `Shape`, built once from an annotation, says which types the plain values stand for, and
   checks them strictly: `parse_value` is both steps.

Most messages are small and flat: named scalars, or one. Where the annotation has no other map, and
a look at the bytes shows that no key can stand twice, `parse_value` has both steps done at once, by
a decoder for that type: twice as fast. What that does not take goes through the two steps.

The other way, `format_value` (or `Codec.encode`, where there is no annotation) makes bytes of a
value in one step.

Types are the same through both codecs: bytes (JSON: base64; msgpack: bin), aware datetime (JSON:
RFC 3339; msgpack: the timestamp extension), date, time and timedelta (ISO 8601), UUID, Decimal,
enums, dataclasses, NamedTuples, msgspec structs, unions, Literal. What is not the same: msgpack has
no integer beyond 64 bits (an error at the sender, never a rounded number), and JSON has no NaN and
no infinity (an error at both ends). `Any` gives plain values, so a date is a str there and in JSON
bytes are too.

A datetime has a time zone, as nobody could say when it is without one. A Decimal is finite, and its
exponent has at most four digits: `int()` of a larger one could take all memory.

Keys of a map are str, enums or Literal, and a set holds these or bytes. The hashes of numbers,
dates, UUID and Decimal are no secret: a peer could send thousands that have the same, and putting
these into a set or map takes quadratic time.

It does not check what it writes, beyond time zones: not a returned value against its annotation,
and not MAX_NESTING and MAX_VALUES. msgspec writes what it is given, and the reader checks.
"""

from __future__ import annotations

import json
import re
import types
import typing
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgpack
import msgspec

from degu_rpc.errors import CodecError, Fault
from degu_rpc.rpc.limits import MAX_FAULT_LENGTH, MAX_FAULTS, MAX_NESTING, MAX_VALUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Codec(NamedTuple):
    """One of the two encodings; `native_types` are the plain types it has beyond JSON's.

    `encode(value) -> bytes` and `decode(bytes) -> plain value` raise CodecError and nothing else.
    `pick_flat(bytes, decoder)` gives the decoder for these bytes if it alone is strict enough.
    """

    name: str
    content_type: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    native_types: tuple[type, ...]
    pick_flat: Callable[[bytes, FlatDecoder], Callable[[bytes], Any] | None]


class Shape(NamedTuple):
    """What values a message may hold: an annotation that was checked, see build_shape()."""

    annotation: Any
    has_datetime: bool
    has_decimal: bool
    flat: FlatDecoder | None


class FlatDecoder(NamedTuple):
    """How to decode what is a scalar, or a list or a struct of such, in one pass.

    `keys` are those that a struct must have, None where there is none. For these types, and not for
    others, msgspec gives the same from bytes as from plain values.
    """

    keys: int | None
    is_scalar: bool
    json: Callable[[bytes], Any]
    msgpack: Callable[[bytes], Any]


def parse_value(data: bytes, shape: Shape, codec: Codec) -> Any:
    """Return the value in `data`, of the type that `shape` asks for.

    Raises CodecError.
    """
    decode_flat = None if shape.flat is None else codec.pick_flat(data, shape.flat)
    if decode_flat is not None:
        try:
            return decode_flat(data)
        except ValueError:
            pass  # the two steps say what is wrong
    return convert_plain(codec.decode(data), shape, codec)


def format_value(value: Any, shape: Shape, codec: Codec) -> bytes:
    """Return the bytes of a value that was annotated with the type of `shape`.

    Raises CodecError.
    """
    if shape.has_datetime or shape.has_decimal:
        check_scalars(value)
    return codec.encode(value)


def convert_plain(plain: Any, shape: Shape, codec: Codec) -> Any:
    """Return the value of the type that `shape` asks for, from what `codec.decode` gave.

    Strict: a number is not taken for a string or a bool, nor the other way round. Fields that a
    dataclass does not have are ignored.

    Raises CodecError.
    """
    try:
        value = msgspec.convert(
            plain, shape.annotation, builtin_types=codec.native_types, str_keys=True
        )
    except msgspec.ValidationError as error:
        raise CodecError(_parse_fault(str(error))) from None
    if shape.has_datetime or shape.has_decimal:
        check_scalars(value)
    return value


def build_error(faults: list[Fault]) -> CodecError:
    """Build the error that tells of `faults`, cut to a size that can be sent."""
    return CodecError(
        *(
            Fault(path[:MAX_FAULT_LENGTH], reason[:MAX_FAULT_LENGTH])
            for path, reason in faults[:MAX_FAULTS]
        )
    )


# --- shapes --------------------------------------------------------------------------------------

_ONE_CODEC_TYPES = (
    msgspec.inspect.RawType,
    msgspec.inspect.ExtType,
    msgspec.inspect.ByteArrayType,
    msgspec.inspect.MemoryViewType,
)
# What is hashed: a peer must not be able to choose the hash. That of str and bytes has a secret in
# it; enums and Literal have few values. A key that is Any is a str.
_SET_TYPES = (
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
)
_KEY_TYPES = (
    msgspec.inspect.AnyType,
    msgspec.inspect.StrType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
)
_FLAT_TYPES = (
    msgspec.inspect.NoneType,
    msgspec.inspect.BoolType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.StrType,
    msgspec.inspect.BytesType,
    msgspec.inspect.LiteralType,
)


def build_shape(annotation: Any) -> Shape:
    """Check that values of an annotated type can travel in both codecs, and build its shape.

    Raises TypeError that says which type cannot.
    """
    try:
        for item in _walk_annotations(annotation):
            _refuse_what_crashes(item)
        found = list(_walk_types(msgspec.inspect.type_info(annotation)))
    except NameError as error:
        raise TypeError(f'{annotation!r} has an annotation that is not defined: {error}') from None
    has_datetime = has_decimal = False
    for info in found:
        if isinstance(info, msgspec.inspect.CustomType):
            raise TypeError(f'{info.cls!r} cannot travel; use plain types, dataclasses or structs')
        if isinstance(info, _ONE_CODEC_TYPES):
            raise TypeError(f'{annotation!r}: {type(info).__name__} cannot travel; use bytes')
        if isinstance(info, msgspec.inspect.DictType):
            for key in _alternatives(info.key_type):
                if not isinstance(key, _KEY_TYPES):
                    raise TypeError(
                        f'{annotation!r}: {type(key).__name__} cannot be the key of a map; use str'
                    )
        if isinstance(info, msgspec.inspect.SetType | msgspec.inspect.FrozenSetType):
            for item in _alternatives(info.item_type):
                if not isinstance(item, _SET_TYPES):
                    raise TypeError(
                        f'{annotation!r}: {type(item).__name__} cannot be in a set: a peer may '
                        'choose many with one hash; use a list'
                    )
        has_datetime = has_datetime or isinstance(info, msgspec.inspect.DateTimeType)
        has_decimal = has_decimal or isinstance(info, msgspec.inspect.DecimalType)
    return Shape(annotation, has_datetime, has_decimal, _build_flat(annotation))


def _build_flat(annotation: Any) -> FlatDecoder | None:
    top = msgspec.inspect.type_info(annotation)
    keys = None
    rest: list[Any] = [top]
    if isinstance(top, msgspec.inspect.DataclassType) or (
        isinstance(top, msgspec.inspect.StructType) and top.tag is None and not top.array_like
    ):
        keys = sum(field.required for field in top.fields)
        rest = [field.type for field in top.fields]
    is_scalar = keys is None
    while rest:
        info = rest.pop()
        if isinstance(info, msgspec.inspect.UnionType):
            rest.extend(info.types)
        elif isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
            is_scalar = False
            rest.append(info.item_type)
        elif isinstance(info, msgspec.inspect.TupleType):
            is_scalar = False
            rest.extend(info.item_types)
        elif not isinstance(info, _FLAT_TYPES):
            return None
    return FlatDecoder(
        keys,
        is_scalar,
        msgspec.json.Decoder(annotation).decode,
        msgspec.msgpack.Decoder(annotation).decode,
    )


def _walk_annotations(top: Any) -> Iterator[Any]:
    """Give an annotation and all that it is made of. Raises NameError."""
    seen: set[type] = set()  # a type can be part of itself
    rest = [top]
    while rest:
        item = rest.pop()
        yield item
        rest.extend(typing.get_args(item))
        if isinstance(item, type) and item not in seen:
            seen.add(item)
            rest.extend(typing.get_type_hints(item, include_extras=True).values())


def _refuse_what_crashes(annotation: Any) -> None:
    """Raise TypeError for a union that msgspec (0.18 to 0.22) writes outside of its memory for.

    That is one of a tuple of a fixed length, and of something with a constraint.
    """
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return
    members = typing.get_args(annotation)
    if any(map(_is_row, members)) and any(hasattr(it, '__metadata__') for it in members):
        raise TypeError(
            f'{annotation!r} cannot travel: in a union with a tuple of a fixed length nothing can '
            'have a constraint; use a NamedTuple or a dataclass in place of the tuple'
        )


def _is_row(annotation: Any) -> bool:
    if hasattr(annotation, '__metadata__'):
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) is tuple and Ellipsis not in typing.get_args(annotation)


def _alternatives(info: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    return info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)


def _walk_types(top: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    seen: set[int] = set()  # a type can be part of itself
    rest: list[Any] = [top]
    while rest:
        item = rest.pop()
        if isinstance(item, tuple | list):
            rest.extend(item)
        elif isinstance(item, msgspec.inspect.Field):
            rest.append(item.type)
        elif isinstance(item, msgspec.inspect.Type) and id(item) not in seen:
            seen.add(id(item))
            yield item
            rest.extend(getattr(item, name) for name in item.__struct_fields__)


DECIMAL = r'[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?'
"""A Decimal as text, either way."""
_match_decimal = re.compile(DECIMAL).fullmatch


def check_scalars(value: Any) -> None:
    """Raise CodecError for each datetime and Decimal that msgspec takes and we do not."""
    try:
        top = msgspec.to_builtins(value, builtin_types=(datetime, Decimal), str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise _fail(f'cannot travel: {error}') from error
    faults = []
    rest = [('$', top)]
    while rest:
        path, plain = rest.pop()
        if isinstance(plain, dict):
            rest.extend((f'{path}.{name}', item) for name, item in plain.items())
        elif isinstance(plain, list | tuple | set | frozenset):
            rest.extend((f'{path}[{index}]', item) for index, item in enumerate(plain))
        elif isinstance(plain, datetime) and plain.utcoffset() is None:
            faults.append(Fault(path, 'expected datetime with a time zone, got one without'))
        elif isinstance(plain, Decimal) and not _match_decimal(str(plain)):
            faults.append(
                Fault(path, 'expected decimal that is finite, with an exponent of up to 4 digits')
            )
    if faults:
        raise build_error(faults)


_VALIDATION_MESSAGE = re.compile(r'(.*?)(?: - at `(key` in `)?([^`]*)`)?', re.DOTALL)


def _parse_fault(message: str) -> Fault:
    """Take apart what msgspec says: "Expected `str`, got `int` - at `$.tags[1]`"."""
    match = _VALIDATION_MESSAGE.fullmatch(message)
    reason, is_key, path = match.groups() if match else (message, None, None)
    reason = reason[:1].lower() + reason[1:].replace('`', '')
    if is_key:
        reason = f'a key: {reason}'
    return Fault(path or '$', reason[:MAX_FAULT_LENGTH])


# --- both codecs ---------------------------------------------------------------------------------


def _fail(reason: str) -> CodecError:
    return CodecError(Fault('$', reason[:MAX_FAULT_LENGTH]))


_TOO_MANY = f'more than {MAX_VALUES} values in one message; send them in several, or as bytes'


def _build_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError('a key stands twice in one map')
    return result


# --- JSON ----------------------------------------------------------------------------------------


def _encode_json(value: Any) -> bytes:
    try:
        data = msgspec.json.encode(value)
        if b'null' in data:
            # msgspec writes null for NaN and infinity; the standard library refuses them.
            json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _fail(f'cannot be written as JSON: {error}') from error
    return data


def _decode_json(data: bytes) -> Any:
    _check_json_structure(data)
    try:
        value = _parse_json(data)
        # msgspec is strict about all but one thing: it keeps the last of two equal keys. There are
        # none if the one map has as many keys as there are colons; else the standard library, which
        # shows all pairs, looks too.
        if data.count(b':') != (len(value) if isinstance(value, dict) else 0):
            _find_duplicate_keys(data.decode())
    except ValueError as error:
        raise _fail(f'not acceptable JSON: {error}') from None
    return value


_parse_json = msgspec.json.Decoder().decode
_find_duplicate_keys = json.JSONDecoder(object_pairs_hook=_build_map).decode
_AS_ARRAYS = bytes.maketrans(b'{}', b'[]')
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b'[]')
_SPACES = b' \t\r\n'


def _check_json_structure(data: bytes) -> None:
    """Raise CodecError for too many values or keys, nesting too deep, or unmatched brackets.

    Before anything is decoded: the decoder recurses, and the stack of a thread is small.
    """
    opened = data.count(b'[') + data.count(b'{')
    if opened <= MAX_NESTING and opened + data.count(b',') + data.count(b':') < MAX_VALUES:
        return
    # What is outside of strings is every second part between quotes that are not escaped. Each
    # string is a value or a key, and too many are not even taken apart.
    data = data.replace(rb'\\', b'').replace(rb'\"', b'')
    if data.count(b'"') > 2 * MAX_VALUES:
        raise _fail(_TOO_MANY)
    outside = b'"'.join(data.split(b'"')[::2]).translate(_AS_ARRAYS, _SPACES)
    # One value is the whole. Each comma and colon has one behind it, and so has each bracket unless
    # it is closed at once.
    count = 1 + sum(map(outside.count, (b',', b':', b'['))) - outside.count(b'[]')
    if count > MAX_VALUES:
        raise _fail(_TOO_MANY)
    brackets = outside.translate(None, _NO_BRACKETS)
    for _ in range(MAX_NESTING):
        brackets = brackets.replace(b'[]', b'')  # the innermost level
    if brackets:
        raise _fail(f'nested deeper than {MAX_NESTING}, or brackets that do not match')


def _pick_flat_json(data: bytes, flat: FlatDecoder) -> Callable[[bytes], Any] | None:
    """Return the decoder if it is enough. A scalar need not be looked at, a list or struct must.

    With as many colons as there are keys that must be there, no key stands twice.
    """
    if flat.is_scalar or (
        (flat.keys is None or data.count(b':') == flat.keys)
        and len(data) <= MAX_VALUES
        and data.count(b'[') + data.count(b'{') <= MAX_NESTING
    ):
        return flat.json
    return None


# --- msgpack -------------------------------------------------------------------------------------


def _encode_msgpack(value: Any) -> bytes:
    try:
        if type(value) in _SAME_IN_BOTH:
            return _encode_scalar(value)
        plain = msgspec.to_builtins(value, builtin_types=_MSGPACK_TYPES, str_keys=True)
        data: bytes = msgpack.packb(plain, datetime=True)
    except OverflowError as error:
        raise _fail(
            f'cannot be written as msgpack: {error}; beyond 64 bits use JSON, or send a str'
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise _fail(f'cannot be written as msgpack: {error}') from error
    return data


def _decode_msgpack(data: bytes) -> Any:
    try:
        # unpackb makes room for as many items as a header claims, so first see that they are there.
        if len(data) <= MAX_VALUES and _is_nested_little(data):
            _skip_msgpack(data)
        else:
            _walk_msgpack(data)
        value = msgpack.unpackb(
            data, timestamp=3, object_pairs_hook=_build_map, ext_hook=_refuse_extension
        )
    except (ValueError, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise _fail(f'not acceptable msgpack: {reason}') from None
    return value


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f'extension type {code} is unknown')


_MSGPACK_TYPES = (bytes, datetime)
# What msgspec writes as msgpack does, three times as fast.
_SAME_IN_BOTH = frozenset({str, bytes, bool, float, type(None)})
_encode_scalar = msgspec.msgpack.Encoder().encode
_MAP_STARTS = {size: bytes([0x80 + size]) for size in range(16)}
_skip_msgpack = msgspec.msgpack.Decoder(msgspec.Raw).decode


def _measure_msgpack(first: int) -> tuple[int, int]:
    """Return what a first byte says: bytes up to the next value, and bytes of a length in front.

    Source: msgpack specification, "Overview" of the formats.
    """
    if 0xA0 <= first <= 0xBF:  # fixstr
        return 1 + (first & 0x1F), 0
    return _MSGPACK_SIZES.get(first, (1, 0))


_MSGPACK_SIZES = dict(
    enumerate(
        [
            *[(2, 1), (3, 2), (5, 4)],  # bin
            *[(3, 1), (4, 2), (6, 4)],  # ext
            *[(5, 0), (9, 0)],  # float
            *[(2, 0), (3, 0), (5, 0), (9, 0)],  # uint
            *[(2, 0), (3, 0), (5, 0), (9, 0)],  # int
            *[(3, 0), (4, 0), (6, 0), (10, 0), (18, 0)],  # fixext
            *[(2, 1), (3, 2), (5, 4)],  # str
            *[(3, 0), (5, 0), (3, 0), (5, 0)],  # array and map
        ],
        0xC4,
    )
)
_MSGPACK_STEPS = [_measure_msgpack(first) for first in range(256)]


def _walk_msgpack(data: bytes) -> None:
    """Raise ValueError unless one value is there, with not too many in it, nested not too deep.

    Without recursion, for what has too many arrays and maps to let the decoder recurse into them.
    """
    outer: list[int] = []  # for each array and map around this place, what is still to come in it
    missing = 1
    position = count = 0
    while missing or outer:
        if not missing:
            missing = outer.pop()
            continue
        if position >= len(data):
            raise ValueError('input data was truncated')
        missing -= 1
        count += 1
        if count > MAX_VALUES:
            raise ValueError(_TOO_MANY)
        first = data[position]
        step, width = _MSGPACK_STEPS[first]
        if width:
            step += int.from_bytes(data[position + 1 : position + 1 + width])
        elif 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
            outer.append(missing)
            if len(outer) > MAX_NESTING:
                raise ValueError(f'nested deeper than {MAX_NESTING}')
            missing = (
                first & 0xF
                if first < 0xA0
                else int.from_bytes(data[position + 1 : position + step])
            )
            if first < 0x90 or first >= 0xDE:  # a map has keys, too
                missing *= 2
        position += step
    if position > len(data):
        raise ValueError('input data was truncated')


# What is left of a message without these bytes is at least the first byte of each array and map.
_NO_CONTAINERS = bytes(set(range(256)) - {*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF})


def _is_nested_little(data: bytes) -> bool:
    """Return whether so few arrays and maps are in `data` that it cannot be nested too deep."""
    return len(data.translate(None, _NO_CONTAINERS)) <= MAX_NESTING


def _pick_flat_msgpack(data: bytes, flat: FlatDecoder) -> Callable[[bytes], Any] | None:
    """Return the decoder if it is enough, as for JSON. Here a map begins with its size.

    The decoder itself finds out what is not there before it makes room for it.
    """
    if flat.is_scalar or (
        (flat.keys is None or data[:1] == _MAP_STARTS.get(flat.keys))
        and len(data) <= MAX_VALUES
        and _is_nested_little(data)
    ):
        return flat.msgpack
    return None


# --- the closed set ------------------------------------------------------------------------------

JSON = Codec('json', 'application/json', _encode_json, _decode_json, (), _pick_flat_json)
MSGPACK = Codec(
    'msgpack',
    'application/msgpack',
    _encode_msgpack,
    _decode_msgpack,
    _MSGPACK_TYPES,
    _pick_flat_msgpack,
)
CODECS = (JSON, MSGPACK)
