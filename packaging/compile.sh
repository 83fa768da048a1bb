# shellcheck shell=bash
# Compiles for a glibc that is older than this machine's: zig is the C compiler and the linker. Sourced, not run, after
# tools.sh.

# targets NAME: what is compiled for it.
targets() { echo "$1-unknown-linux-gnu"; }

# binary NAME: where its binary is once it is compiled. That cargo-deb and cargo-generate-rpm look there is cargo's rule.
binary() { echo "$GENERATED/cargo/$(targets "$1")/release/osquery-remote-tls"; }

# zig_cargo NAME COMMAND ARGUMENT...: zigbuild, or another command, with no path of this machine in what is made, neither
# from Rust nor from C. rustc makes position independent executables with full RELRO by itself; C code is asked for the same
# care.
zig_cargo() (
    name=$1
    command=$2
    shift 2
    home=${CARGO_HOME:-$HOME/.cargo}
    export CARGO_INCREMENTAL=0
    export RUSTFLAGS="--remap-path-prefix=$home=/cargo --remap-path-prefix=$PWD=/source"
    export CFLAGS="-ffile-prefix-map=$home=/cargo -ffile-prefix-map=$PWD=/source -fstack-protector-strong -D_FORTIFY_SOURCE=2"
    export CARGO_TARGET_DIR=$GENERATED/cargo
    cargo-zigbuild "$command" --quiet --locked --target "$(targets "$name").$GLIBC" "$@"
)

# compile NAME: the binary, as it is packed.
compile() {
    zig_cargo "$1" zigbuild --release -p osquery-remote-tls
    # cargo strips symbols and leaves the compilers' names.
    objcopy --strip-all --remove-section=.comment "$(binary "$1")"
}

# compile_try_installed NAME: what packaging/test runs in its roots, for as old a glibc.
compile_try_installed() {
    CARGO_PROFILE_DEV_DEBUG=0 zig_cargo "$1" zigbuild -p testkit --bin try-installed
}

# try_installed NAME: where that is.
try_installed() { echo "$GENERATED/cargo/$(targets "$1")/debug/try-installed"; }
