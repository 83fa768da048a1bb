# shellcheck shell=bash disable=SC2034
# What the scripts in this directory need: tools, in the versions that make the packages the same twice, and where things
# are. Sourced, not run.

CARGO_DEB=3.8.0
CARGO_GENERATE_RPM=0.21.1
CARGO_CYCLONEDX=0.5.9

# The glibc that the Linux binaries need at least, and macOS's version.
GLIBC=2.17
MACOS=11.0

# The generated files, the build and the packages; all of them can be removed.
GENERATED=target/packaging
PACKAGES=${PACKAGES:-target/packages}

# need_crate COMMAND VERSION: left alone when that version is there. Compiled without optimization, which would take longer
# than all of the tool's work, and in one place, since these tools have dependencies in common.
need_crate() {
    if [ "$("$1" "${1#cargo-}" --version 2>/dev/null | grep -o '[0-9.]*$')" != "$2" ]; then
        env -u RUSTFLAGS CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --force \
            --target-dir "$GENERATED/tools" "$1@$2"
    fi
}

# need_packagers: what makes packages and SBOMs of what cargo has compiled.
need_packagers() {
    need_zig
    need_crate cargo-deb "$CARGO_DEB"
    need_crate cargo-generate-rpm "$CARGO_GENERATE_RPM"
    need_crate cargo-cyclonedx "$CARGO_CYCLONEDX"
}

# ours PROGRAM ARGUMENT...: one of this workspace's own programs. Its dependencies have the features that the whole workspace
# asks of them: those that `cargo test --workspace` has compiled are not compiled again.
ours() {
    env -u RUSTFLAGS cargo build --quiet --locked --workspace --bin "$1"
    "${CARGO_TARGET_DIR:-target}/debug/$1" "${@:2}"
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

# need_zig: zig and cargo-zigbuild, as packaging/zig.txt pins them, in a Python environment of their own.
need_zig() {
    local home=$PWD/$GENERATED/zig
    if ! cmp -s packaging/zig.txt "$home/made"; then
        python3 -c "import ensurepip, venv" 2>/dev/null || need_debian "Python's venv" python3-venv
        rm -rf "$home"
        python3 -m venv "$home"
        "$home/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
            -r packaging/zig.txt
        cp packaging/zig.txt "$home/made"
    fi
    export CARGO_ZIGBUILD_ZIG_PATH=$home/bin/python-zig
    export PATH=$home/bin:$PATH
}

# version: of the workspace, as Cargo.toml has it.
version() {
    sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml
}
