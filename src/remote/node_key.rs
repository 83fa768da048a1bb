//! What can be a node key. Pure.
//!
//! A server chooses it, and each request carries it from then on: in the body, in a header, in the URL. It is also
//! masked in everything that is shown, so a word would hide that word everywhere.

/// The longest one, in bytes. Servers' keys have some tens; with `tls_node_api` it is in the URL, percent-encoded.
const LONGEST: usize = 4096;

/// A key with fewer characters than this, and nothing but letters, is a word.
const WORD: usize = 8;

/// Words of ours, and of osqueryd's, that would be missed in a log. No server's key is a part of that.
const OUR_WORDS: &str = "osquery osqueryd remote_tls osquery-remote-tls extension certificate certificates configuration \
    connection enrollment enrolling distributed logger result lines status lines are not delivered can't be delivered \
    the server answered with an error (http the server does not accept the node key answer request requests fail works \
    again after failures https:// tls handshake timed out receive response can't connect the connection broke \
    journal decorator handing over registered with osqueryd starting another one <hidden> \",\" \":\"";

/// Why this can't be a node key.
pub(super) fn check(key: &str) -> Result<(), &'static str> {
    if key.len() > LONGEST {
        return Err("it has more than 4096 bytes");
    }
    if key.chars().any(char::is_control) {
        return Err("it has control characters");
    }
    // Shorter ones are not masked.
    let is_masked = key.len() >= crate::secret::SHORTEST_MASKED;
    let is_word = key.chars().count() < WORD
        && key.chars().all(|character| character.is_alphabetic() || "_- ".contains(character));
    if is_masked && (is_word || OUR_WORDS.contains(&key.to_lowercase())) {
        return Err("it is a word, and masking it would hide that word everywhere");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_servers_are_keys() {
        for key in ["k", "k1", "key-1", "this_is_a_node_secret", "node-4411", "11111111", "123", "Zm9vYmFyYmF6cXV1eA=="]
        {
            assert_eq!(check(key), Ok(()), "{key}");
        }
        assert_eq!(check(&"k".repeat(LONGEST)), Ok(()));
    }

    #[test]
    fn absurd_ones_are_none() {
        let long = "k".repeat(LONGEST + 1);
        for key in [&long, "a\nb-and-more-1", "esc\u{1b}ape-1", "nul\0-and-more-1", "\u{9b}31m-and-more"] {
            assert!(check(key).is_err(), "{key:?}");
        }
        for word in ["error", "the", "HTTP", "osqueryd", "the server", "Configuration", "remote_tls", "://", "\",\""] {
            assert!(check(word).is_err(), "{word}");
        }
    }
}
