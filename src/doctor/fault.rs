//! What is to be done about an answer that is no success, or about none. Pure: the same remedies for what the doctor itself is
//! answered, and for what the extension says that it was answered.

use super::subject::Subject;
use crate::remote::Endpoint;
use crate::settings::SecretSource;

/// The paths of servers in the field, as packaging/examples has them: enroll, config, log, read, write.
const SERVERS: [(&str, [&str; 5]); 4] = [
    (
        "Fleet",
        [
            "/api/osquery/enroll",
            "/api/osquery/config",
            "/api/osquery/log",
            "/api/osquery/distributed/read",
            "/api/osquery/distributed/write",
        ],
    ),
    (
        "Zentral",
        [
            "/public/osquery/enroll",
            "/public/osquery/config",
            "/public/osquery/log",
            "/public/osquery/distributed/read",
            "/public/osquery/distributed/write",
        ],
    ),
    (
        "osctrl",
        ["/ENVIRONMENT/enroll", "/ENVIRONMENT/config", "/ENVIRONMENT/log", "/ENVIRONMENT/read", "/ENVIRONMENT/write"],
    ),
    ("doorman", ["/enroll", "/config", "/log", "/distributed/read", "/distributed/write"]),
];

/// What a server that has given up the node key needs.
pub(super) const WAITS_FOR_ANOTHER_KEY: &str = "nothing: the host asks for another one within --reenroll_within seconds (600), \
                                                or at once by `osquery-remote-tls refresh`; --enroll tries whether it gets one";

/// The most characters of a server's own words that are shown.
const LONGEST_WORDS: usize = 160;

/// An answer, or none, and the flags that can have to do with it.
#[derive(Clone, Debug)]
pub(super) struct Fault<'a> {
    pub(super) endpoint: Endpoint,
    /// The HTTP status; 0 without an answer.
    pub(super) status: u16,
    /// What the server or the error says of the reason.
    pub(super) words: &'a str,
    pub(super) flags: &'a Flags,
}

/// The flags that can be to blame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    /// The endpoints' paths, in the order of [`Endpoint::ALL`].
    pub(super) paths: [String; 5],
    /// Where the enroll secret is: the flag and its value.
    pub(super) secret: String,
    /// Whether log requests are compressed.
    pub(super) compress: bool,
    /// The value of `logger_max_request_bytes`.
    pub(super) request_bytes: usize,
    /// The path of our own flag file.
    pub(super) own_flagfile: String,
}

impl Flags {
    pub(super) fn of(subject: &Subject) -> Self {
        let settings = &subject.settings;
        let path = |endpoint: Endpoint| endpoint.path(&settings.endpoints).unwrap_or_default().to_owned();
        Self {
            paths: Endpoint::ALL.map(path),
            secret: match &settings.enroll.secret {
                SecretSource::File(path) => format!("--enroll_secret_path={}", path.display()),
                SecretSource::Environment(name) => format!("--enroll_secret_env={name}"),
                SecretSource::None => "--enroll_secret_path, which is not set".to_owned(),
            },
            compress: settings.logger.compress,
            request_bytes: settings.logger.max_request_bytes,
            own_flagfile: subject.own_path.display().to_string(),
        }
    }
}

/// What known servers have for an endpoint.
pub(super) fn known_paths(endpoint: Endpoint) -> String {
    let at = index(endpoint);
    let paths = SERVERS.iter().filter_map(|(server, paths)| Some(format!("{server} {}", paths.get(at)?)));
    paths.collect::<Vec<_>>().join(", ")
}

fn index(endpoint: Endpoint) -> usize {
    Endpoint::ALL.iter().position(|other| *other == endpoint).unwrap_or_default()
}

impl Fault<'_> {
    /// What to do about it.
    pub(super) fn remedy(&self) -> String {
        let has = |words: &str| self.words.to_lowercase().contains(words);
        if wants_client_certificate(self.status, self.words) {
            return CLIENT_CERTIFICATE.to_owned();
        }
        if has("redirected") {
            return redirect(self.words);
        }
        match self.status {
            404 | 405 => self.wrong_path(),
            413 => self.too_large(),
            407 => PROXY_CREDENTIALS.to_owned(),
            408 => SLOW.to_owned(),
            429 => "the server limits requests (osctrl: enrollments by address): wait, or raise its limit".to_owned(),
            500.. if has("asks to be left alone") => {
                "wait: the extension asks again when that time is over; the server's log says why it is busy".to_owned()
            }
            502..=504 => "what stands before the server (a proxy, a load balancer) doesn't reach it: look there, and \
                          whether the server runs"
                .to_owned(),
            500.. => "look at the server's log".to_owned(),
            _ if self.endpoint == Endpoint::Enroll && (has("that it gave") || has("so many node keys")) => {
                "see on the server why it gives up this host's keys: it may be blocked or removed there, or another host has \
                 its identifier (--host_identifier=uuid tells hosts apart)"
                    .to_owned()
            }
            _ if self.endpoint == Endpoint::Enroll && self.is_refusal() => self.wrong_secret(),
            400 | 415 if self.endpoint == Endpoint::Logger && self.flags.compress => {
                "set --logger_tls_compress=false: the server may not take gzip; else look at its log".to_owned()
            }
            401 | 403 => "see in the server's log why it refuses this host (blocked, removed, its address)".to_owned(),
            _ => self.without_a_status(&has),
        }
    }

    fn is_refusal(&self) -> bool {
        let words = self.words.to_lowercase();
        let says_so = ["does not accept", "no node key", "answered with an error", "refuse"];
        matches!(self.status, 400 | 401 | 403) || says_so.iter().any(|says| words.contains(says))
    }

    fn without_a_status(&self, has: &dyn Fn(&str) -> bool) -> String {
        let text = match () {
            () if has("does not accept the node key") => WAITS_FOR_ANOTHER_KEY,
            () if has("not a json object") => {
                "something else answers here, such as a web page or a login of a proxy: see --tls_hostname and the \
                 endpoint's flag"
            }
            () if has("not a configuration") => "correct this host's configuration on the server",
            () if has("timed out") || has("no answer") => SLOW,
            () if has("can't be used") => "correct the flag that is named",
            () if has("can't be read") || has("no such environment variable") => "see the check of the enroll secret",
            () if has("can't connect") || has("can't be resolved") || has("tls handshake") => {
                "the way to the server was broken then, and is not now: nothing, unless it comes again"
            }
            () if has("the connection broke") => {
                "look at the server's log, and at what is between it and this host: the connection is cut"
            }
            () => "look at the server's log",
        };
        text.to_owned()
    }

    fn wrong_path(&self) -> String {
        let path = self.flags.paths.get(index(self.endpoint)).map_or("", String::as_str);
        let (flag, known) = (self.endpoint.flag(), known_paths(self.endpoint));
        format!("--{flag}={path} is not this server's path for it; known servers have: {known}")
    }

    fn wrong_secret(&self) -> String {
        format!(
            "the secret is the first guess: compare {} with the server's (Fleet: the team's, \"Add hosts\"); then look at \
             the server's log",
            self.flags.secret
        )
    }

    fn too_large(&self) -> String {
        if self.endpoint != Endpoint::Logger {
            return "raise the limit for bodies in the server, or in the proxy before it (nginx: client_max_body_size)"
                .to_owned();
        }
        format!(
            "raise the limit for bodies in the server, or in the proxy before it (nginx: client_max_body_size, 1 MiB unless \
             set), or set --logger_max_request_bytes below it in {} (now {}); Fleet answers 413 also when its own result log \
             can't be written",
            self.flags.own_flagfile, self.flags.request_bytes
        )
    }
}

/// Of a server that wants a client certificate, or another one.
pub(super) const CLIENT_CERTIFICATE: &str = "set --tls_client_cert and --tls_client_key to a certificate of the authority that the server takes its \
     clients from, and its key; restart osqueryd";

const SLOW: &str = "the server is too slow, or something between swallows the requests: look at its load and its log \
                    (--request_timeout in the extension's own flags is how long a request may take)";

/// Of a proxy that wants to know who asks.
pub(super) const PROXY_CREDENTIALS: &str =
    "the proxy wants a user and a password: --proxy_hostname=USER:PASSWORD@HOST:PORT";

/// Whether an answer says that a client certificate is wanted: nginx says it in a page.
pub(super) fn wants_client_certificate(status: u16, words: &str) -> bool {
    let words = words.to_lowercase();
    let says = ["no required ssl certificate", "ssl certificate error", "client certificate"];
    matches!(status, 495 | 496) || says.iter().any(|says| words.contains(says))
}

/// What to do about a redirect that is not followed.
fn redirect(words: &str) -> String {
    let target = words.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(target, _)| target);
    let target = target.trim_matches('"');
    let host = target.strip_prefix("https://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if target.starts_with("http://") {
        "the server leads from https to plain http, where no secret is sent: correct its external URL".to_owned()
    } else if host.is_empty() {
        "correct the redirect on the server, or the endpoint's flag".to_owned()
    } else {
        format!("set --tls_hostname={host} if that is your server; a login page there means a proxy that wants a user")
    }
}

/// A server's own words in a body: a member of JSON, or a page's text; empty where there are none.
pub(super) fn words_of(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let json = serde_json::from_str::<serde_json::Value>(&text).ok();
    let text = match &json {
        Some(json) => {
            let member = ["error", "message", "detail", "reason"].into_iter().find_map(|name| json.get(name)?.as_str());
            member.unwrap_or_default().to_owned()
        }
        None => without_tags(&text),
    };
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then(|| words.chars().take(LONGEST_WORDS).collect())
}

/// A page's text. A `<title>` says mostly what the page says once more.
fn without_tags(page: &str) -> String {
    let page = match (page.find("<title>"), page.find("</title>")) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{} {}", page.get(..begin).unwrap_or_default(), page.get(end..).unwrap_or_default())
        }
        _ => page.to_owned(),
    };
    let mut text = String::new();
    let mut within = false;
    for letter in page.chars() {
        match letter {
            '<' => {
                within = true;
                text.push(' ');
            }
            '>' => within = false,
            _ if !within => text.push(letter),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(endpoint: Endpoint, status: u16, words: &str) -> String {
        let flags = Flags {
            paths: ["/e", "/c", "/l", "/r", "/w"].map(str::to_owned),
            secret: "--enroll_secret_path=/etc/osquery/secret".to_owned(),
            compress: true,
            request_bytes: 1 << 20,
            own_flagfile: "/etc/osquery/remote_tls.flags".to_owned(),
        };
        Fault { endpoint, status, words, flags: &flags }.remedy()
    }

    /// Each fault has its own remedy: a part of it.
    #[test]
    fn every_answer_has_its_remedy() {
        use Endpoint::{Config, DistributedRead, Enroll, Logger};
        let refused = "the server does not accept the node key: bad secret";
        for (endpoint, status, words, expected) in [
            (Enroll, 404, "the server answered HTTP 404", "--enroll_tls_endpoint=/e is not this server's path"),
            (Config, 405, "the server answered HTTP 405", "Fleet /api/osquery/config, Zentral /public/osquery/config"),
            (DistributedRead, 404, "", "osctrl /ENVIRONMENT/read"),
            (
                Logger,
                413,
                "the server answered HTTP 413",
                "--logger_max_request_bytes below it in /etc/osquery/remote_tls.flags (now 1048576)",
            ),
            (Enroll, 413, "the server answered HTTP 413", "client_max_body_size"),
            (Enroll, 401, refused, "compare --enroll_secret_path=/etc/osquery/secret with the server's"),
            (Enroll, 200, refused, "the secret is the first guess"),
            (Enroll, 403, "the server answered HTTP 403", "the secret is the first guess"),
            // sgt answers a wrong secret so.
            (Enroll, 200, "the answer has no node key", "the secret is the first guess"),
            (Enroll, 200, "the server does not accept the node key that it gave", "why it gives up this host's keys"),
            (Enroll, 0, "so many node keys were rejected that the next one waits", "why it gives up this host's keys"),
            (Enroll, 429, "the server answered HTTP 429", "enrollments by address"),
            (Config, 401, "the server does not accept the node key", "why it refuses this host"),
            (Config, 200, "the server does not accept the node key", "asks for another one within"),
            (Config, 403, "the server answered HTTP 403", "why it refuses this host"),
            (Config, 200, "the answer is not a JSON object (it begins \"<html>\")", "something else answers here"),
            (Config, 200, "the answer is not a configuration: an empty object", "correct this host's configuration"),
            (Logger, 400, "the server answered HTTP 400", "--logger_tls_compress=false"),
            (Config, 400, "the server answered HTTP 400", "the server's log"),
            (Config, 400, "No required SSL certificate was sent", "--tls_client_cert and --tls_client_key"),
            (Config, 496, "", "--tls_client_cert and --tls_client_key"),
            (Config, 407, "", "USER:PASSWORD@HOST:PORT"),
            (Logger, 408, "", "too slow"),
            (Logger, 0, "timed out (receive response)", "too slow"),
            (Logger, 500, "", "look at the server's log"),
            (Logger, 503, "the server answered HTTP 503; it asks to be left alone for 10 min", "asks again when"),
            (Logger, 502, "", "what stands before the server"),
            (Logger, 0, "the connection broke: reset", "the connection is cut"),
            (Logger, 0, "can't connect: refused", "was broken then, and is not now"),
            (Logger, 0, "--tls_client_key= can't be used: x", "correct the flag that is named"),
            (
                Config,
                0,
                "redirected to another host, or away from https (https://login.example/x): not followed",
                "--tls_hostname=login.example",
            ),
            (Config, 0, "redirected to another host, or away from https (http://fleet/x): not followed", "plain http"),
            (Config, 0, "redirected to nowhere: not followed", "correct the redirect"),
        ] {
            let said = remedy(endpoint, status, words);
            assert!(said.contains(expected), "{endpoint} {status} {words}: {said}");
        }
    }

    #[test]
    fn a_server_s_words_are_plain_text() {
        let words = |body: &str| words_of(body.as_bytes());
        assert_eq!(words(r#"{"message":"Forbidden"}"#).as_deref(), Some("Forbidden"));
        let page = "<html><head><title>502 Bad Gateway</title></head>\r\n<body><center><h1>502 Bad Gateway</h1></center><hr>nginx</body></html>";
        assert_eq!(words(page).as_deref(), Some("502 Bad Gateway nginx"));
        assert_eq!((words(""), words("{}"), words("<html></html>")), (None, None, None));
        assert_eq!(words(&"x".repeat(1000)).map(|words| words.len()), Some(LONGEST_WORDS));
    }
}
