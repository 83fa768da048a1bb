//! Our flag file and osqueryd's options.
//!
//! The input is a flag file's text; after a line that is [`SEPARATOR`], osqueryd's options follow, `name=value` a
//! line. [`Inflated`] input is the same text.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use osquery_remote_tls::cli::Cli;
use osquery_remote_tls::remote::Url;
use osquery_remote_tls::settings::{FrontSettings, Options, OwnFlags, REMOTE_PREFIX, Server, Settings, own};

use crate::inflated::{Inflated, scaled};
use crate::memory::{Bound, within};

/// Between the flag file and the options.
pub const SEPARATOR: &str = "----";

/// A proxy's password, which no message may show.
pub const PASSWORD: &str = "Zq7-fuzz-passw0rd";

/// The largest inflated input.
const MOST: usize = scaled(64 << 10);

/// Each line that is none has an error, and a line is two bytes. The file is the operator's, and a megabyte at most.
const FLAGFILE: Bound = Bound { each: 130, always: 64 << 10 };

/// Copies of the values.
const SETTINGS: Bound = Bound { each: 8, always: 64 << 10 };

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Tries one input.
pub fn run(input: &[u8]) {
    let inflated = Inflated::of(input, MOST).map(|inflated| inflated.whole());
    let text = String::from_utf8_lossy(inflated.as_deref().unwrap_or(input));
    let (flags, options) = text.split_once(&format!("{SEPARATOR}\n")).unwrap_or((&text, ""));
    let own = check_flagfile(flags);
    let pairs = options.lines().filter_map(|line| line.split_once('='));
    let options: Options = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    check_settings(&options, &own);
    if text.matches(PASSWORD).count() == 1 && options.get("proxy_hostname").is_some_and(|proxy| has_password(proxy)) {
        let shown = format!("{:?}", Settings::new(&options, &own));
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
}

fn has_password(proxy: &str) -> bool {
    let credentials = proxy.rsplit_once('@').and_then(|(credentials, _)| credentials.split_once(':'));
    credentials.is_some_and(|(_, password)| password.contains(PASSWORD))
}

fn check_flagfile(text: &str) -> OwnFlags {
    let path = Path::new("/etc/f");
    let (own, errors) = within(FLAGFILE, text.len(), "the flag file", || OwnFlags::parse(path, text));
    let again = OwnFlags::parse(path, text);
    assert_eq!((&own, &errors), (&again.0, &again.1), "the same file, the same flags");
    assert!(errors.len() <= text.lines().count());
    for error in &errors {
        assert!(error.to_string().starts_with("/etc/f:"), "{error}");
    }

    assert_eq!(own.clone().or(OwnFlags::default()), own);
    assert_eq!(OwnFlags::default().or(own.clone()), own);
    let arguments = own.to_arguments();
    let command = std::iter::once("x").chain(arguments.iter().map(String::as_str)).map(OsString::from);
    let cli = Cli::read(command).expect("arguments of our own making");
    assert_eq!((cli.own.to_arguments(), cli.unknown), (arguments.clone(), Vec::new()));
    let (written, errors) = OwnFlags::parse(path, &arguments.join("\n"));
    assert_eq!((written.to_arguments(), errors), (arguments, Vec::new()), "written as a flag file");
    own
}

fn check_settings(options: &Options, own: &OwnFlags) {
    let weight = options.iter().map(|(name, value)| name.len() + value.len()).sum();
    let (settings, errors) = within(SETTINGS, weight, "the settings", || Settings::new(options, own));
    assert_eq!(Settings::new(options, own), (settings.clone(), errors.clone()), "the same flags, the same settings");
    check_ranges(&settings);
    let front = FrontSettings::from(&settings);
    let sent = serde_json::to_string(&front).expect("no text of ours is no UTF-8");
    assert_eq!(serde_json::from_str::<FrontSettings>(&sent).expect("our own form"), front);

    // Unusable values count for nothing: without them the settings are the same.
    let (mut usable, mut usable_own) = (options.clone(), own.clone());
    for error in &errors {
        assert!(error.to_string().starts_with(&format!("--{}={} ", error.flag, error.value)), "{error}");
        usable.remove(&error.flag);
        if let Some(flag) = own::named(error.flag.strip_prefix(REMOTE_PREFIX).unwrap_or(&error.flag)) {
            usable_own.remove(flag);
        }
    }
    assert_eq!(Settings::new(&usable, &usable_own), (settings.clone(), Vec::new()));

    // A configuration can't move the buffers, and unknown options change nothing.
    let mut more = options.clone();
    more.insert(format!("{REMOTE_PREFIX}buffer_path"), "/elsewhere".to_owned());
    more.insert("no_such_flag".to_owned(), "1".to_owned());
    assert_eq!(Settings::new(&more, own).0, settings);

    if let Ok(server) = &settings.server {
        check_address(server);
    }
    if let Ok(Some(proxy)) = &settings.proxy {
        check_address(&Server { address: proxy.address.clone(), path: String::new() });
        assert!(proxy.address.port.is_some());
    }
}

fn check_ranges(settings: &Settings) {
    let seconds = |duration: Duration, least: u64, most: u64| {
        assert!((Duration::from_secs(least)..=Duration::from_secs(most)).contains(&duration), "{settings:?}");
    };
    seconds(settings.request_timeout, 1, 3600);
    seconds(settings.return_timeout, 1, 3600);
    seconds(settings.tls.session_timeout, 0, WEEK.as_secs());
    seconds(settings.enroll.max_interval, 0, WEEK.as_secs());
    seconds(settings.journal_sync_interval.unwrap_or(Duration::from_secs(1)), 1, 3600);
    let logger = &settings.logger;
    assert!((Duration::from_millis(100)..=WEEK).contains(&logger.period));
    assert!(logger.backoff_max.is_none_or(|most| !most.is_zero() && most <= WEEK));
    assert!(logger.max_lines >= 1);
    assert!((1024..=1 << 30).contains(&logger.max_request_bytes));
    assert!(logger.limits.max_lines != Some(0) && logger.limits.max_bytes != 0);
    assert!(settings.enroll.max_attempts != Some(0));
    assert!(settings.config_max_attempts >= 1 && settings.distributed_max_attempts >= 1);
    assert!(!settings.api.secret_name.is_empty());
}

/// What is taken for an address is one for the HTTP client, too, which reads the URL that is made of it.
fn check_address(address: &Server) {
    assert_eq!(Server::parse(&address.to_string()).as_ref(), Some(address));
    let url: http::Uri = Url::new(address, "/log", None).expose().parse().expect("a URL");
    assert_eq!((url.host(), url.port_u16()), (Some(&*address.address.host), address.address.port));
    assert_eq!(url.path(), format!("{}/log", address.path));
}
