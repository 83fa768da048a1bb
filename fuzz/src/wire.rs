//! Thrift's binary protocol, written by hand: strings of any bytes, and nothing of the code that is tried.

/// Types of fields.
pub mod kind {
    /// A 32-bit number.
    pub const I32: u8 = 8;
    /// A 64-bit number.
    pub const I64: u8 = 10;
    /// Bytes.
    pub const STRING: u8 = 11;
    /// Fields, to a stop.
    pub const STRUCT: u8 = 12;
    /// Keys and values.
    pub const MAP: u8 = 13;
    /// Elements.
    pub const LIST: u8 = 15;
}

/// A message that asks.
pub const CALL: u8 = 1;
/// A message that answers.
pub const REPLY: u8 = 2;

/// The end of a struct.
const STOP: u8 = 0;

/// A message: its header and the struct of its arguments or its result.
#[must_use]
pub fn message(kind: u8, name: &[u8], sequence: i32, content: &[u8]) -> Vec<u8> {
    [&[0x80, 1, 0, kind], &*string(name), &sequence.to_be_bytes(), content].concat()
}

/// A struct of these fields.
#[must_use]
pub fn structure(fields: &[Vec<u8>]) -> Vec<u8> {
    [&*fields.concat(), &[STOP]].concat()
}

/// A field of a struct.
#[must_use]
pub fn field(kind: u8, id: i16, value: &[u8]) -> Vec<u8> {
    [&[kind], &id.to_be_bytes()[..], value].concat()
}

/// A string, of any bytes.
#[must_use]
pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&length(bytes.len())[..], bytes].concat()
}

/// A list of these elements.
#[must_use]
pub fn list(kind: u8, elements: &[Vec<u8>]) -> Vec<u8> {
    [&[kind], &length(elements.len())[..], &elements.concat()].concat()
}

/// A map of strings to strings, in this order; a key may be there twice.
#[must_use]
pub fn string_map<K: AsRef<[u8]>, V: AsRef<[u8]>>(entries: &[(K, V)]) -> Vec<u8> {
    let mut map = [&[kind::STRING, kind::STRING], &length(entries.len())[..]].concat();
    for (key, value) in entries {
        map.extend(string(key.as_ref()));
        map.extend(string(value.as_ref()));
    }
    map
}

/// osqueryd's `call` of an extension's plugin.
#[must_use]
pub fn call<K: AsRef<[u8]>, V: AsRef<[u8]>>(
    registry: &[u8],
    item: &[u8],
    request: &[(K, V)],
    sequence: i32,
) -> Vec<u8> {
    let arguments = [
        field(kind::STRING, 1, &string(registry)),
        field(kind::STRING, 2, &string(item)),
        field(kind::MAP, 3, &string_map(request)),
    ];
    message(CALL, b"call", sequence, &structure(&arguments))
}

fn length(length: usize) -> [u8; 4] {
    (length as u32).to_be_bytes()
}
