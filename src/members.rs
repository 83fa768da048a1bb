//! A JSON object's members in order, names and values as they are written.

use std::fmt;
use std::iter;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object: pieces of the text that it was read from. Names have their quotes and escapes, and may
/// occur more than once.
#[derive(Debug)]
pub struct Members<'a>(pub Vec<(&'a str, &'a str)>);

impl<'a> Members<'a> {
    /// The members of the object that this text is; `None` when it is none.
    #[must_use]
    pub fn of(object: &'a str) -> Option<Self> {
        serde_json::from_str(object).ok()
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let next = || map.next_entry::<&'de RawValue, &'de RawValue>().transpose();
                let members = iter::from_fn(next).map(|entry| entry.map(|(name, value)| (name.get(), value.get())));
                Ok(Members(members.collect::<Result<_, _>>()?))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
