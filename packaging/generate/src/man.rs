//! Man pages: clap's sections, then those that only we can know.

use std::io;

use clap::Command;
use clap_mangen::Man;
use osquery_remote_tls::doctor::Check;

/// Of the commands of administrators.
const SECTION: &str = "8";

/// What `whatis` shows: the description is a paragraph.
const SUMMARY: &str = "osquery extension for osquery's remote TLS API";

/// After the options of the main page. osqueryd's own side is in the documentation, not here.
const SECTIONS: &str = r#".SH RUNNING
osqueryd starts the extension: its path is in
.IR /etc/osquery/extensions.load ,
and the flag file has
.PP
.EX
\-\-config_plugin=remote_tls
\-\-logger_plugin=remote_tls
\-\-distributed_plugin=remote_tls
.EE
.PP
All of osquery's remote flags
.RB ( \-\-tls_hostname ,
.B \-\-enroll_tls_endpoint
and so on) keep their meaning and are read from osqueryd. Two processes run: the one that osqueryd starts and
watches, and its worker, which it replaces should it ever die.
.SH SIGNALS
.TP
.B SIGHUP
to the first process: settings are read again, and a new worker takes over, which fetches the configuration. Another binary in the old one's place has
the same effect within seconds.
.TP
.BR SIGTERM ", " SIGINT
A clean end.
.SH "EXIT STATUS"
.TP
.B 0
The end was asked for, or osqueryd is gone.
.TP
.B 1
It could not run; the last line on standard error says why.
.TP
.B 64
The command line can't be used.
.SH ENVIRONMENT
.TP
.B REMOTE_TLS_FLAGFILE
Another settings file than
.IR /etc/osquery/remote_tls.flags .
.SH FILES
.TP
.I /usr/lib/osquery-remote-tls/remote_tls.ext
The program. osqueryd loads a file only when its name ends in
.IR .ext ,
so its name on the PATH is a link.
.TP
.I /etc/osquery/extensions.load
The extensions that osqueryd starts, a path a line.
.TP
.I /etc/osquery/remote_tls.flags
Our own settings,
.BI \-\- name = value
lines.
.TP
.I /var/osquery/remote_tls/
Lines that the server doesn't have yet, and the last good configuration.
.SH "SEE ALSO"
.BR osqueryd (8),
.I /usr/share/doc/osquery\-remote\-tls/
"#;

/// After the doctor's options, but for the checks.
const DOCTOR: &str = r#".SH "EXIT STATUS"
.TP
.B 0
All is well. With
.BR \-\-before :
nothing failed.
.TP
.B 1
Something failed.
.TP
.B 2
Nothing failed, and there are warnings.
.TP
.B 64
The command line can't be used.
.SH EXAMPLES
A roll-out, host by host, while osqueryd still runs without the extension:
.PP
.EX
osquery\-remote\-tls doctor \-\-before && systemctl restart osqueryd
.EE
.PP
From cron, which sends mail when there is something to read:
.PP
.EX
osquery\-remote\-tls doctor \-\-quiet
.EE
.PP
The osqueryd of Fleet's agent, where another one runs, too:
.PP
.EX
osquery\-remote\-tls doctor \-\-socket /opt/orbit/orbit\-osquery.em
.EE
.PP
What failed, for a program:
.PP
.EX
osquery\-remote\-tls doctor \-\-json | jq '.findings[] | select(.level == "failure")'
.EE
.SH "SEE ALSO"
.BR osquery\-remote\-tls (8),
.BR osqueryd (8),
.I /usr/share/doc/osquery\-remote\-tls/docs/doctor.md
"#;

/// After the options of the page about `logger test`.
const LOGGER_TEST: &str = r#".SH "EXIT STATUS"
.TP
.B 0
The server has the line.
.TP
.B 1
It hasn't within the time; the last line says what the endpoint said. The line is kept, and sent later.
.SH EXAMPLES
After a change of the server, or of a certificate:
.PP
.EX
osquery\-remote\-tls refresh && osquery\-remote\-tls logger test
.EE
"#;

/// After the options of the page about `flare`.
const FLARE: &str = r#".SH EXAMPLES
Make the bundle, and read it before it is passed on:
.PP
.EX
osquery\-remote\-tls flare \-\-output /root/flare.tar.gz && tar \-xzOf /root/flare.tar.gz | less
.EE
.SH "SEE ALSO"
.BR osquery\-remote\-tls\-doctor (8)
"#;

/// The main page and one for each visible subcommand, those of subcommands among them, by file name.
pub(crate) fn pages(mut command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    // Gives subcommands their full names.
    command.build();
    let mut pages = Vec::new();
    for subcommand in subcommands(&command) {
        let man = described(subcommand.clone());
        let mut page = Vec::new();
        man.render(&mut page)?;
        if subcommand.get_name().ends_with("doctor") {
            page.extend_from_slice(checks().as_bytes());
            page.extend_from_slice(DOCTOR.as_bytes());
        }
        match man.get_filename().as_str() {
            "osquery-remote-tls-logger-test.8" => page.extend_from_slice(LOGGER_TEST.as_bytes()),
            "osquery-remote-tls-flare.8" => page.extend_from_slice(FLARE.as_bytes()),
            _ => {}
        }
        pages.push((man.get_filename(), page));
    }
    pages.push(main_page(command)?);
    Ok(pages)
}

/// All that are shown, each before its own.
fn subcommands(command: &Command) -> Vec<&Command> {
    let shown =
        command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set() && subcommand.get_name() != "help");
    shown.flat_map(|subcommand| [vec![subcommand], subcommands(subcommand)].concat()).collect()
}

fn main_page(command: Command) -> io::Result<(String, Vec<u8>)> {
    let has_subcommands = command.has_subcommands();
    let named = described(command.clone().about(SUMMARY));
    let man = described(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    named.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend_from_slice(SECTIONS.as_bytes());
    Ok((man.get_filename(), page))
}

/// What the doctor looks at, in its order.
fn checks() -> String {
    let mut text = String::from(".SH CHECKS\nIn this order; what can't be judged for another one's sake is skipped.\n");
    for check in Check::ALL {
        text.push_str(&format!(".TP\n.B {}\n{}.\n", check.name(), check.about()));
    }
    text
}

fn described(command: Command) -> Man {
    Man::new(command).manual("osquery").section(SECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_and_each_of_its_own_commands_too() {
        let pages = pages(crate::command()).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for command in
            ["", "-doctor", "-status", "-buffer", "-buffer-export", "-rejected-retry", "-logger-test", "-flare"]
        {
            assert!(
                names.contains(&format!("osquery-remote-tls{command}.8").as_str()),
                "{command} is missing in {names:?}"
            );
        }
        assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
    }

    #[test]
    fn the_doctor_s_page_has_every_check_every_option_and_every_exit_code() {
        let pages = pages(crate::command()).unwrap();
        let (_, page) = pages.iter().find(|(name, _)| name == "osquery-remote-tls-doctor.8").unwrap();
        let page = String::from_utf8(page.clone()).unwrap();
        for check in Check::ALL {
            assert!(page.contains(&format!(".B {}\n{}.\n", check.name(), check.about())), "{}", check.name());
        }
        for part in ["before", "deep", "quiet", "socket", ".SH EXAMPLES", ".SH \"EXIT STATUS\"\n.TP\n.B 0\n"] {
            assert!(page.contains(part), "{part} is missing in\n{page}");
        }
    }
}
