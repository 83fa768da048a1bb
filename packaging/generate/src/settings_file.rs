//! The settings file that packages install: every flag of ours, commented out.

use std::fmt::Write;

use osquery_remote_tls::settings::own::FLAGS;

const HEAD: &str = "\
# Settings of osquery-remote-tls that osquery has no flag for, a --name=value a line. osquery's own flags
# (--tls_hostname and so on) stay where they are, in osquery.flags. Read at the start, and again at a SIGHUP to
# remote_tls.ext. Numbers without a unit are bytes or seconds. Those marked * can be set by the server too.
";

pub(crate) fn text() -> String {
    let mut text = HEAD.to_owned();
    for flag in FLAGS {
        let mark = if flag.setter.is_server_too() { "* " } else { "" };
        let value = flag.kind.default_text().unwrap_or_else(|| flag.kind.placeholder().to_owned());
        // A String takes what is written to it.
        let _ = write!(text, "\n# {mark}{}\n#--{}={value}\n", flag.plain_help(), flag.name);
    }
    text
}
