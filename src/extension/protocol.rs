//! Thrift's binary protocol as osqueryd needs it read: strings are bytes that are not always UTF-8.
//!
//! osquery's rows hold whatever a file name or a command line holds. The `thrift` crate ends the connection at the
//! first invalid byte, and with it the log line is lost and osqueryd with it. [`LossyInput`] replaces such bytes by
//! U+FFFD instead. It also reads a string's bytes as they come, so that an absurd length claimed by a broken client
//! costs no memory, and allows longer strings than the crate's default does.

use std::io::{BufRead, Read};

use thrift::protocol::{
    TBinaryInputProtocol, TFieldIdentifier, TInputProtocol, TListIdentifier, TMapIdentifier, TMessageIdentifier,
    TSetIdentifier, TStructIdentifier, TType,
};
use thrift::{ProtocolError, ProtocolErrorKind, Result, TConfiguration};

/// The longest string accepted from osqueryd. A snapshot of a large table is one string.
pub const MAX_STRING: usize = 512 << 20;

/// The longest list accepted: the generated code reserves memory for as many rows as are claimed. osqueryd sends lists
/// only in answers to our queries, of a row or a few.
const MAX_LIST: i32 = 1 << 16;

/// The most bytes that are reserved for a string before its bytes are there.
const RESERVED_AHEAD: usize = 64 << 10;

/// Reads the binary protocol (strict), with strings repaired instead of refused.
pub struct LossyInput<R: BufRead> {
    inner: TBinaryInputProtocol<R>,
}

impl<R: BufRead> LossyInput<R> {
    /// Reads messages from `reader`.
    pub fn new(reader: R) -> Result<Self> {
        let limits = TConfiguration::builder()
            .max_message_size(Some(2 * MAX_STRING))
            .max_string_size(Some(MAX_STRING))
            .build()?;
        Ok(Self { inner: TBinaryInputProtocol::with_config(reader, true, limits) })
    }

    fn protocol_error<T>(kind: ProtocolErrorKind, message: String) -> Result<T> {
        Err(thrift::Error::Protocol(ProtocolError::new(kind, message)))
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        let claimed = self.inner.read_i32()?;
        let Some(length) = usize::try_from(claimed).ok().filter(|&length| length <= MAX_STRING) else {
            return Self::protocol_error(ProtocolErrorKind::SizeLimit, format!("a string of {claimed} bytes"));
        };
        let mut bytes = Vec::with_capacity(length.min(RESERVED_AHEAD));
        let got = (&mut self.inner.transport).take(length as u64).read_to_end(&mut bytes)?;
        if got < length {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    }

    fn list_begin(&mut self) -> Result<TListIdentifier> {
        let list = self.inner.read_list_begin()?;
        if list.size > MAX_LIST {
            return Self::protocol_error(ProtocolErrorKind::SizeLimit, format!("a list of {} elements", list.size));
        }
        Ok(list)
    }

    fn message_begin(&mut self) -> Result<TMessageIdentifier> {
        // Its name is short. The inner protocol could read it, but would reserve whatever its length announces.
        if self.inner.transport.fill_buf()?.is_empty() {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let header = self.inner.read_i32()?;
        let [_, version, _, kind] = header.to_be_bytes();
        if header >= 0 || version != 1 {
            return Self::protocol_error(ProtocolErrorKind::BadVersion, format!("header {header:#010x}"));
        }
        let message_type = kind.try_into()?;
        let name = self.read_string()?;
        let sequence_number = self.inner.read_i32()?;
        Ok(TMessageIdentifier::new(name, message_type, sequence_number))
    }
}

impl<R: BufRead> TInputProtocol for LossyInput<R> {
    fn read_bytes(&mut self) -> Result<Vec<u8>> {
        self.bytes()
    }

    fn read_string(&mut self) -> Result<String> {
        let bytes = self.read_bytes()?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn read_message_begin(&mut self) -> Result<TMessageIdentifier> {
        self.message_begin()
    }

    fn read_message_end(&mut self) -> Result<()> {
        self.inner.read_message_end()
    }

    fn read_struct_begin(&mut self) -> Result<Option<TStructIdentifier>> {
        self.inner.read_struct_begin()
    }

    fn read_struct_end(&mut self) -> Result<()> {
        self.inner.read_struct_end()
    }

    fn read_field_begin(&mut self) -> Result<TFieldIdentifier> {
        self.inner.read_field_begin()
    }

    fn read_field_end(&mut self) -> Result<()> {
        self.inner.read_field_end()
    }

    fn read_bool(&mut self) -> Result<bool> {
        self.inner.read_bool()
    }

    fn read_i8(&mut self) -> Result<i8> {
        self.inner.read_i8()
    }

    fn read_i16(&mut self) -> Result<i16> {
        self.inner.read_i16()
    }

    fn read_i32(&mut self) -> Result<i32> {
        self.inner.read_i32()
    }

    fn read_i64(&mut self) -> Result<i64> {
        self.inner.read_i64()
    }

    fn read_double(&mut self) -> Result<f64> {
        self.inner.read_double()
    }

    fn read_uuid(&mut self) -> Result<uuid::Uuid> {
        self.inner.read_uuid()
    }

    fn read_list_begin(&mut self) -> Result<TListIdentifier> {
        self.list_begin()
    }

    fn read_list_end(&mut self) -> Result<()> {
        self.inner.read_list_end()
    }

    fn read_set_begin(&mut self) -> Result<TSetIdentifier> {
        self.inner.read_set_begin()
    }

    fn read_set_end(&mut self) -> Result<()> {
        self.inner.read_set_end()
    }

    fn read_map_begin(&mut self) -> Result<TMapIdentifier> {
        self.inner.read_map_begin()
    }

    fn read_map_end(&mut self) -> Result<()> {
        self.inner.read_map_end()
    }

    fn read_byte(&mut self) -> Result<u8> {
        self.inner.read_byte()
    }

    fn min_serialized_size(&self, field_type: TType) -> usize {
        self.inner.min_serialized_size(field_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(length: i32, bytes: &[u8]) -> Vec<u8> {
        [&length.to_be_bytes()[..], bytes].concat()
    }

    #[test]
    fn invalid_utf_8_is_repaired() {
        let wire = string(4, b"a\xffb\n");
        assert_eq!(LossyInput::new(wire.as_slice()).unwrap().read_string().unwrap(), "a\u{fffd}b\n");
    }

    #[test]
    fn absurd_lengths_are_refused_or_cost_nothing() {
        for length in [-1, i32::MAX] {
            let wire = string(length, b"");
            assert!(LossyInput::new(wire.as_slice()).unwrap().read_bytes().is_err());
        }
        let wire = string(MAX_STRING as i32, b"short");
        let error = LossyInput::new(wire.as_slice()).unwrap().read_bytes().unwrap_err();
        assert!(matches!(error, thrift::Error::Transport(_)), "{error:?}");
    }

    #[test]
    fn long_lists_are_refused() {
        let list = |length: i32| [&[13], &length.to_be_bytes()[..]].concat();
        let read = |wire: Vec<u8>| LossyInput::new(wire.as_slice()).unwrap().read_list_begin();
        assert_eq!(read(list(MAX_LIST)).unwrap().size, MAX_LIST);
        for length in [-1, MAX_LIST + 1, i32::MAX] {
            assert!(read(list(length)).is_err(), "{length}");
        }
    }

    #[test]
    fn garbage_is_no_message() {
        for garbage in ["", "GET / HTTP/1.1\r\n\r\n", "\u{0}\u{0}\u{0}\u{4}ping\u{1}\u{0}\u{0}\u{0}\u{0}"] {
            assert!(LossyInput::new(garbage.as_bytes()).unwrap().read_message_begin().is_err(), "{garbage:?}");
        }
    }
}
