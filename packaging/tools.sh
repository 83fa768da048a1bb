# shellcheck shell=bash disable=SC2034
# What packaging/build, check and test share: the tools that they need, in the versions that made the packages the
# same twice, and where things are. Sourced, not run.

CARGO_DEB=3.8.0
CARGO_GENERATE_RPM=0.21.1
CARGO_CYCLONEDX=0.5.9

# The generated files, the build and the packages; all of them can be removed.
GENERATED=target/packaging
PACKAGES=${PACKAGES:-target/packages}

# need_crate COMMAND VERSION: cargo leaves it alone when that version is there.
need_crate() {
    if [ "$("$1" "${1#cargo-}" --version 2>/dev/null | grep -o '[0-9.]*$')" != "$2" ]; then
        cargo install --quiet --locked "$1@$2"
    fi
}

# need_debian COMMAND PACKAGE: only Debian's packager and root can be helped.
need_debian() {
    if command -v "$1" >/dev/null; then return; fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$1 is needed: install Debian's package $2, or what your system calls it" >&2
        exit 1
    fi
    if ! apt-get install -y -qq --no-install-recommends "$2" >/dev/null 2>&1; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "$2" >/dev/null
    fi
}

# version: of the workspace, as Cargo.toml has it.
version() {
    sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml
}
