//! A JSON object's members, and an array's items, in order and as they are written. Nothing is collected: texts of servers
//! are read so, and a member costs a server five bytes.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Hands over each member of the object that this text is: pieces of the text, the name with its quotes and escapes. Names
/// may occur more than once. `None` when the text is no object; what was handed over before counts for nothing then.
pub fn each<'a>(object: &'a str, visit: impl FnMut(&'a str, &'a str)) -> Option<()> {
    read(object, Each(visit))
}

/// Hands over each item of the array that this text is; `None` for any other text.
pub fn items<'a>(array: &'a str, visit: impl FnMut(&'a str)) -> Option<()> {
    read(array, Items(visit))
}

/// The text that a string as it is written stands for; `None` for what is no string, and for one longer than `most` bytes as
/// it is written.
#[must_use]
pub fn string(written: &str, most: usize) -> Option<String> {
    (written.starts_with('"') && written.len() <= most).then(|| serde_json::from_str(written).ok()).flatten()
}

/// Whether a name as it is written, with quotes and escapes, is this one.
#[must_use]
pub fn is(written: &str, name: &str) -> bool {
    match written.strip_prefix('"').and_then(|written| written.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => plain == name,
        // An escape has at most six characters for one.
        _ => string(written, 6 * name.len() + 2).is_some_and(|read| read == name),
    }
}

fn read<'a, S: DeserializeSeed<'a, Value = ()>>(text: &'a str, seed: S) -> Option<()> {
    let mut reader = serde_json::Deserializer::from_str(text);
    seed.deserialize(&mut reader).and_then(|()| reader.end()).ok()
}

struct Each<F>(F);

impl<'a, F: FnMut(&'a str, &'a str)> DeserializeSeed<'a> for Each<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a, F: FnMut(&'a str, &'a str)> Visitor<'a> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<&'a RawValue, &'a RawValue>()? {
            (self.0)(name.get(), value.get());
        }
        Ok(())
    }
}

struct Items<F>(F);

impl<'a, F: FnMut(&'a str)> DeserializeSeed<'a> for Items<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a, F: FnMut(&'a str)> Visitor<'a> for Items<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut array: A) -> Result<(), A::Error> {
        while let Some(item) = array.next_element::<&'a RawValue>()? {
            (self.0)(item.get());
        }
        Ok(())
    }
}

/// The whole number that a value is, also one that is written as a string, as old versions of osquery do. Whatever the value is,
/// no tree is made of it.
#[must_use]
pub fn number(written: &str) -> Option<i64> {
    let text = string(written, usize::MAX);
    text.as_deref().map_or(written, str::trim).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_items_come_as_they_are_written() {
        let mut seen = Vec::new();
        each(r#" {"a" : [1, 2],"\u0061":{} } "#, |name, value| seen.push((name, value))).unwrap();
        assert_eq!(seen, [("\"a\"", "[1, 2]"), (r#""\u0061""#, "{}")]);
        assert!(seen.iter().all(|(name, _)| is(name, "a")));
        let mut seen = Vec::new();
        items("[1, \"x\",[ ]]", |item| seen.push(item)).unwrap();
        assert_eq!(seen, ["1", "\"x\"", "[ ]"]);
        for text in ["", "7", "{", "{}x", "[1,]"] {
            assert!(each(text, |_, _| {}).is_none() && items(text, |_| {}).is_none(), "{text}");
        }
    }

    #[test]
    fn names_are_compared_as_they_are_meant() {
        assert!(is("\"a\"", "a") && is(r#""\u0061\u0062""#, "ab"));
        assert!(!is("\"a\"", "b") && !is("a", "a") && !is("7", "7") && !is(r#""\udce9""#, "a"));
        assert_eq!(string(r#""\n""#, 4).as_deref(), Some("\n"));
        assert_eq!((string("\"long\"", 5), string("7", 5)), (None, None));
    }
}
