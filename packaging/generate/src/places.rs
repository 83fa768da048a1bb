//! macOS's paths, in texts that name Linux's.

use std::path::Path;

use osquery_remote_tls::platform::Places;

/// The text, with Linux's paths turned into those of `places`.
pub(crate) fn replace(text: &[u8], places: &Places) -> String {
    let mut text = String::from_utf8_lossy(text).into_owned();
    let mut replace = |from: &str, to: &str| {
        // In a man page a hyphen is "\-".
        text = text.replace(from, to).replace(&from.replace('-', "\\-"), &to.replace('-', "\\-"));
    };
    for (from, to) in Places::LINUX.all().into_iter().zip(places.all()) {
        replace(from, to);
    }
    // What lies beside these.
    replace(&directory(Places::LINUX.own_flagfile), &directory(places.own_flagfile));
    replace(&directory(Places::LINUX.extension), &directory(places.extension));
    text
}

fn directory(path: &str) -> String {
    let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
    format!("{}/", parent.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_s_paths_become_those_of_macos_and_stay_for_linux() {
        let linux = "\
            .I /etc/osquery/extensions.load\n\
            .I /usr/share/doc/osquery\\-remote\\-tls/\n\
            --enroll_secret_path=/etc/osquery/secret\n";
        let macos = "\
            .I /var/osquery/extensions.load\n\
            .I /opt/osquery\\-remote\\-tls/share/doc/\n\
            --enroll_secret_path=/var/osquery/secret\n";
        assert_eq!(replace(linux.as_bytes(), &Places::MACOS), macos);
        assert_eq!(replace(linux.as_bytes(), &Places::LINUX), linux);
    }
}
