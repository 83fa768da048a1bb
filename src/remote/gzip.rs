//! How a request's body is compressed. Pure.

use std::io::{self, Write};

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

use super::api::Body;

/// A member of gzip (RFC 1952) in which the body's head is stored as it is. The rest is compressed without looking at it, so
/// that its size says nothing of the head, whatever it is.
pub(super) fn gzip(body: &Body<'_>) -> io::Result<Vec<u8>> {
    // Deflate, no flags, no time, fastest, no system named.
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];
    let [stored, rest @ ..] = body.pieces().map(str::as_bytes);
    let mut member = Vec::with_capacity(HEADER.len() + stored.len() + body.length() / 8);
    member.extend(HEADER);
    for block in stored.chunks(usize::from(u16::MAX)) {
        // Not the last block, and stored; its length, and that inverted (RFC 1951, 3.2.4).
        let length = u16::try_from(block.len()).unwrap_or_default();
        member.push(0);
        member.extend(length.to_le_bytes());
        member.extend((!length).to_le_bytes());
        member.extend(block);
    }
    let mut encoder = DeflateEncoder::new(member, Compression::fast());
    rest.iter().try_for_each(|piece| encoder.write_all(piece))?;
    let mut member = encoder.finish()?;
    let mut sum = Crc::new();
    body.pieces().iter().for_each(|piece| sum.update(piece.as_bytes()));
    member.extend(sum.sum().to_le_bytes());
    member.extend(sum.amount().to_le_bytes());
    Ok(member)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::remote::api::{KeyPlace, LogType, Payload, body};
    use crate::secret::Secret;

    #[test]
    fn what_is_compressed_is_one_member_with_its_head_as_it_is() {
        let lines = "{\"name\":\"a\"},".repeat(20_000);
        for length in [0, 1, 100, 70_000, 200_000] {
            let key = Secret::new(&*"k".repeat(length));
            let body = body(Payload::Lines(LogType::Result, &lines), &key, KeyPlace::Body);
            let packed = gzip(&body).unwrap();
            let mut reader = flate2::bufread::GzDecoder::new(packed.as_slice());
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert!(text == body.to_string() && reader.into_inner().is_empty(), "{length}");
            assert!(packed.len() < length + 2000, "{length}: {}", packed.len());
        }
    }

    #[test]
    fn the_size_says_nothing_of_what_is_stored() {
        let sizes = ["key-0123456789", "yek-9876543210"].map(|guess| {
            let (key, lines) = (Secret::new("key-0123456789"), format!("\"{guess}\""));
            gzip(&body(Payload::Lines(LogType::Result, &lines), &key, KeyPlace::Body)).unwrap().len()
        });
        assert_eq!(sizes[0], sizes[1]);
    }
}
