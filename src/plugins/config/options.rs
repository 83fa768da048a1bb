//! A configuration's `options`, changed in place: every byte of the document but those of the change stays. Pure.
//!
//! osqueryd and serde read duplicate members differently (the first counts for the one, the last for the other), so a
//! change is made at each of them: either reader then finds it.

use std::ops::Range;

use serde_json::Value;

use crate::members::{self, is};

/// The member's name, as osquery has it.
const OPTIONS: &str = "options";

/// How often a document mentions `options`, or an option, at most. One that does more often is left as it is.
const MOST_MENTIONS: usize = 64;

/// The value, as JSON, that the document's `options` give to `name`: the last one. `None` where they don't mention it.
pub(super) fn option<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let mut last = None;
    members::each(document, |member, object| {
        if is(member, OPTIONS) {
            let _ = members::each(object, |member, value| last = if is(member, name) { Some(value) } else { last });
        }
    })?;
    last
}

/// The document with `name` set to `value`, which is JSON, in its `options`, which are created where there are none.
///
/// `None` for a text that is no JSON object, and where `options` is something else than an object.
pub(super) fn with_option(document: &str, name: &str, value: &str) -> Option<String> {
    let member = format!("{}:{value}", Value::from(name));
    let Mentions { values: objects, empty } = Mentions::of(OPTIONS, document)?;
    let mut edits = Vec::new();
    if objects.is_empty() {
        let options = format!("{}:{{{member}}}", Value::from(OPTIONS));
        edits.push(insertion(document, document, &options, empty)?);
    }
    for object in objects {
        let Mentions { values, empty } = Mentions::of(name, object)?;
        if values.is_empty() {
            edits.push(insertion(document, object, &member, empty)?);
        }
        edits.extend(values.into_iter().map(|present| (place(document, present), value.to_owned())));
    }
    apply(document, edits)
}

/// The document with other values in its `options`: `change` is given each option's name, as it is written, and value,
/// as JSON, and answers what stands in the value's place. `None` when nothing changes, when too much would, and for a
/// text that is no JSON object.
pub(super) fn with_values(document: &str, change: impl Fn(&str, &str) -> Option<String>) -> Option<String> {
    let mut edits = Vec::new();
    members::each(document, |member, object| {
        if is(member, OPTIONS) {
            let _ = members::each(object, |name, value| {
                if edits.len() <= MOST_MENTIONS
                    && let Some(changed) = change(name, value)
                {
                    edits.push((place(document, value), changed));
                }
            });
        }
    })?;
    if edits.is_empty() || edits.len() > MOST_MENTIONS { None } else { apply(document, edits) }
}

/// What an object says of a name.
struct Mentions<'a> {
    /// The values that it gives to it.
    values: Vec<&'a str>,
    /// Whether it has no member at all.
    empty: bool,
}

impl<'a> Mentions<'a> {
    /// `None` when the text is no object, or mentions the name too often.
    fn of(name: &str, object: &'a str) -> Option<Self> {
        let (mut mentions, mut count) = (Self { values: Vec::new(), empty: true }, 0);
        members::each(object, |member, value| {
            mentions.empty = false;
            if is(member, name) {
                count += 1;
                if count <= MOST_MENTIONS {
                    mentions.values.push(value);
                }
            }
        })?;
        (count <= MOST_MENTIONS).then_some(mentions)
    }
}

/// Puts a member in front of an object's others.
fn insertion(document: &str, object: &str, member: &str, empty: bool) -> Option<(Range<usize>, String)> {
    let at = place(document, object).start + object.find('{')? + 1;
    Some((at..at, if empty { member.to_owned() } else { format!("{member},") }))
}

/// Makes changes, which are in the document's order.
fn apply(document: &str, edits: Vec<(Range<usize>, String)>) -> Option<String> {
    let mut changed = String::with_capacity(document.len() + 64);
    let mut done = 0;
    for (range, text) in edits {
        changed.push_str(document.get(done..range.start)?);
        changed.push_str(&text);
        done = range.end;
    }
    changed.push_str(document.get(done..)?);
    Some(changed)
}

/// Where a piece of the document stands in it.
fn place(document: &str, piece: &str) -> Range<usize> {
    let start = (piece.as_ptr() as usize).saturating_sub(document.as_ptr() as usize);
    start..start + piece.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    const NAME: &str = "logger_event_type";

    fn set(document: &str) -> Option<String> {
        with_option(document, NAME, "false")
    }

    #[test]
    fn a_member_is_put_behind_the_opening_brace_and_every_other_byte_stays() {
        for (document, expected) in [
            (
                "{\n \"options\" : {\n  \"verbose\": true } , \"schedule\":{}}\n",
                "{\n \"options\" : {\"logger_event_type\":false,\n  \"verbose\": true } , \"schedule\":{}}\n",
            ),
            (r#"{"options":{}}"#, r#"{"options":{"logger_event_type":false}}"#),
            ("{\"options\":{ \t}}", "{\"options\":{\"logger_event_type\":false \t}}"),
            (" {\"a\":1.50e1}", " {\"options\":{\"logger_event_type\":false},\"a\":1.50e1}"),
            ("{}", r#"{"options":{"logger_event_type":false}}"#),
            ("{ }\r\n", "{\"options\":{\"logger_event_type\":false} }\r\n"),
        ] {
            assert_eq!(set(document).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_member_that_is_there_gets_the_value() {
        assert_eq!(
            set(r#"{"options":{"logger_event_type" : "true" ,"a":[1]}}"#).as_deref(),
            Some(r#"{"options":{"logger_event_type" : false ,"a":[1]}}"#)
        );
        // However its name is written.
        assert_eq!(
            set(r#"{"\u006fptions":{"logger\u005fevent_type":1}}"#).as_deref(),
            Some(r#"{"\u006fptions":{"logger\u005fevent_type":false}}"#)
        );
    }

    #[test]
    fn of_duplicates_each_gets_the_value() {
        assert_eq!(
            set(r#"{"options":{"a":1},"options":{"logger_event_type":1,"logger_event_type":2}}"#).as_deref(),
            Some(
                r#"{"options":{"logger_event_type":false,"a":1},"options":{"logger_event_type":false,"logger_event_type":false}}"#
            )
        );
    }

    #[test]
    fn options_elsewhere_are_something_else() {
        let document = r#"{"packs":{"p":{"options":{"logger_event_type":true}}},"x":"\"options\":{"}"#;
        assert_eq!(option(document, NAME), None);
        assert_eq!(
            set(document).as_deref(),
            Some(format!(r#"{{"options":{{"logger_event_type":false}},{}"#, &document[1..]).as_str())
        );
        let nested = r#"{"options":{"custom_a":{"logger_event_type":true},"b":"\"logger_event_type\":1"}}"#;
        assert_eq!(option(nested, NAME), None);
        assert!(set(nested).unwrap().starts_with(r#"{"options":{"logger_event_type":false,"custom_a""#));
    }

    #[test]
    fn values_are_changed_where_they_stand() {
        let swap = |name: &str, value: &str| (is(name, "a") && value == "1").then(|| "[2]".to_owned());
        assert_eq!(
            with_values("{\"options\" :{ \"a\": 1 ,\"b\":1,\"\\u0061\":1, \"a\":3}, \"a\":1}\n", swap).as_deref(),
            Some("{\"options\" :{ \"a\": [2] ,\"b\":1,\"\\u0061\":[2], \"a\":3}, \"a\":1}\n")
        );
        // osqueryd reads the first object of that name, serde's readers the last.
        assert_eq!(
            with_values(r#"{"options":{"a":1},"options":{"a":1}}"#, swap).as_deref(),
            Some(r#"{"options":{"a":[2]},"options":{"a":[2]}}"#)
        );
        for document in ["", "[]", r#"{"a":1}"#, r#"{"options":[1]}"#, r#"{"options":{"a":2,"o":{"a":1}}}"#] {
            assert_eq!(with_values(document, swap), None, "{document}");
        }
    }

    #[test]
    fn what_has_no_place_for_options_is_not_changed() {
        for document in
            ["", "[]", "null", "{", r#"{"options":[]}"#, r#"{"options":null}"#, r#"{"options":"{}"}"#, "{}x"]
        {
            assert_eq!(set(document), None, "{document}");
        }
        // A comment is no JSON: osqueryd strips such lines, and the option has to be set elsewhere.
        assert_eq!(set("{\n# a comment\n\"options\":{}}"), None);
    }

    #[test]
    fn bytes_that_serde_s_strings_refuse_stay_too() {
        let document = r#"{"a":"\udce9","\udce9":1,"options":{"\udce9":"\udce9"}}"#;
        let expected = r#"{"a":"\udce9","\udce9":1,"options":{"logger_event_type":false,"\udce9":"\udce9"}}"#;
        assert_eq!(set(document).as_deref(), Some(expected));
    }

    #[test]
    fn the_last_mention_counts_and_is_found_however_it_is_written() {
        assert_eq!(option(r#"{"options":{"logger_event_type":true}}"#, NAME), Some("true"));
        assert_eq!(option(r#"{"options":{"\u006cogger_event_type": "f"}}"#, NAME), Some("\"f\""));
        assert_eq!(option(r#"{"options":{"logger_event_type":1,"logger_event_type":0}}"#, NAME), Some("0"));
        assert_eq!(option(r#"{"options":[],"schedule":{}}"#, NAME), None);
        assert_eq!(option("<html>", NAME), None);
    }

    /// Some JSON, with names that matter in all places.
    fn value(random: &mut Rng, depth: usize) -> String {
        let scalar = ["1", "-0.50e+3", "true", "null", "\"\"", r#""{\"options\":{}}""#, r#""\u00e9\\""#];
        match random.usize(..if depth == 0 { 7 } else { 9 }) {
            8 => object(random, depth - 1),
            7 => {
                let items: Vec<String> = (0..random.usize(..3)).map(|_| value(random, depth - 1)).collect();
                format!("[{}{}]", blank(random), items.join(","))
            }
            chosen => scalar[chosen].to_owned(),
        }
    }

    fn object(random: &mut Rng, depth: usize) -> String {
        let names = [
            "\"options\"",
            r#""\u006fptions""#,
            "\"logger_event_type\"",
            r#""logger\u005fevent_type""#,
            "\"a\"",
            r#""\"""#,
            "\"\"",
        ];
        let members: Vec<String> = (0..random.usize(..5))
            .map(|_| {
                let name = names[random.usize(..names.len())];
                format!("{}{name}{}:{}{}", blank(random), blank(random), blank(random), value(random, depth))
            })
            .collect();
        format!("{{{}{}}}", members.join(","), blank(random))
    }

    fn blank(random: &mut Rng) -> &'static str {
        ["", "", " ", "\n\t", "\r\n "][random.usize(..5)]
    }

    #[test]
    fn the_result_reads_as_the_original_with_the_change() {
        let mut changed = 0;
        for seed in 0..20_000 {
            let mut random = Rng::with_seed(seed);
            let document = format!("{}{}{}", blank(&mut random), object(&mut random, 3), blank(&mut random));
            let mut expected: Value = serde_json::from_str(&document).unwrap();
            let Some(result) = set(&document) else {
                let mut other = false;
                members::each(&document, |name, value| other |= is(name, OPTIONS) && !value.starts_with('{')).unwrap();
                assert!(other, "seed {seed}: {document}");
                continue;
            };
            expected[OPTIONS][NAME] = Value::Bool(false);
            let read: Value = serde_json::from_str(&result).unwrap_or_else(|error| panic!("{seed}: {error}: {result}"));
            assert_eq!(read, expected, "seed {seed}: {document} became {result}");
            assert_eq!(option(&result, NAME), Some("false"), "seed {seed}: {result}");
            assert_eq!(set(&result).as_ref(), Some(&result), "seed {seed}: again");
            changed += 1;
        }
        assert!(changed > 10_000, "{changed}");
    }
}
