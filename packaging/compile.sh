# shellcheck shell=bash
# Compiles for any of our targets on one Linux machine: zig is the C compiler and the linker. Sourced, not run, after
# tools.sh.
#
# Rust's standard library for a target is the toolchain's own where it is there (rustup target add TARGET). Elsewhere, on
# Debian, rustc and the sources of its standard library come from Debian's rustc-web and rust-web-src: they are unpacked
# below target/, not installed, and cargo compiles the library (-Zbuild-std). Debian replaces their versions in time, so
# these are not pinned; both packages are of one version.

RUST_WEB=$GENERATED/rust-web

# standard_library TARGET: "toolchain", "debian", or the reason why there is none.
standard_library() {
    if [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ]; then
        echo toolchain
    elif [ -x "$RUST_WEB/rustc" ] || debian_has_rust_web; then
        echo debian
    else
        echo "no standard library for it is here: rustup target add $1"
    fi
}

# The architecture of macOS for which code is checked without being built.
MACOS_CHECKED=aarch64-apple-darwin

# A new machine has no list of Debian's packages yet.
debian_has_rust_web() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return 1; fi
    apt-cache show rustc-web rust-web-src >/dev/null 2>&1 ||
        { apt-get update -qq >&2 && apt-cache show rustc-web rust-web-src >/dev/null 2>&1; }
}

# targets NAME: what is compiled for it.
targets() {
    case $1 in
    macos) echo aarch64-apple-darwin x86_64-apple-darwin ;;
    *) echo "$1-unknown-linux-gnu" ;;
    esac
}

# binary NAME: where its binary is once it is compiled. That cargo-deb and cargo-generate-rpm look there is cargo's rule.
binary() {
    case $1 in
    macos) echo "$GENERATED/cargo/universal2-apple-darwin/release/osquery-remote-tls" ;;
    *) echo "$GENERATED/cargo/$1-unknown-linux-gnu/release/osquery-remote-tls" ;;
    esac
}

# Debian's rustc with the sources of its standard library, unpacked.
unpack_rust_web() {
    local home=$PWD/$RUST_WEB archive
    if [ -x "$home/rustc" ]; then return; fi
    rm -rf "$home"
    mkdir -p "$home/archives/partial"
    # What the system has already is not loaded again.
    apt-get install -qq -y --no-install-recommends --download-only -o "Dir::Cache::archives=$home/archives" \
        -o APT::Sandbox::User=root -o Debug::NoLocking=1 rustc-web rust-web-src >/dev/null
    for archive in "$home"/archives/*.deb; do
        dpkg-deb -x "$archive" "$home"
    done
    rm -rf "$home/archives"
    cat >"$home/rustc" <<END
#!/bin/sh
here=\$(cd "\$(dirname "\$0")" && pwd)
LD_LIBRARY_PATH=\$here/usr/lib/$(uname -m)-linux-gnu exec "\$here/usr/bin/rustc" "\$@"
END
    chmod 755 "$home/rustc"
}

# use_standard_library TARGET...: for the commands of this shell that follow.
use_standard_library() {
    local target
    for target in "$@"; do
        if [ "$(standard_library "$target")" = debian ]; then
            unpack_rust_web
            export RUSTC=$PWD/$RUST_WEB/rustc
            # Both are unstable as yet.
            export RUSTC_BOOTSTRAP=1 CARGO_UNSTABLE_BUILD_STD=std,panic_unwind
            return
        fi
    done
}

# zig_cargo NAME COMMAND ARGUMENT...: zigbuild, check or clippy, for one of x86_64, aarch64 and macos, with no path of this
# machine in what is made, neither from Rust nor from C. rustc makes position independent executables with full RELRO by
# itself; C code is asked for the same care.
zig_cargo() (
    name=$1
    command=$2
    shift 2
    home=${CARGO_HOME:-$HOME/.cargo}
    targets=$(targets "$name")
    # A build is for both of macOS's architectures.
    if [ "$name" = macos ] && [ "$command" != zigbuild ]; then targets=$MACOS_CHECKED; fi
    # shellcheck disable=SC2086
    use_standard_library $targets
    export CARGO_INCREMENTAL=0
    RUSTFLAGS="--remap-path-prefix=$home=/cargo --remap-path-prefix=$PWD=/source"
    library=$("${RUSTC:-rustc}" --print sysroot)/lib/rustlib/src/rust
    if [ -d "$library" ]; then
        # Cargo names what lies below this directory by a relative path.
        RUSTFLAGS+=" --remap-path-prefix=$library=/rust --remap-path-prefix=$(realpath "$library")=/rust"
        RUSTFLAGS+=" --remap-path-prefix=${library#"$PWD/"}=/rust"
    fi
    export CFLAGS="-ffile-prefix-map=$home=/cargo -ffile-prefix-map=$PWD=/source -fstack-protector-strong"
    case $name in
    macos)
        # Symbols are left out by the linker: whatever changes the file later would break the signature that the linker
        # makes for arm64. Debug information in it would also change the file's UUID.
        RUSTFLAGS+=" -Clink-arg=-Wl,-S -Clink-arg=-Wl,-x"
        export MACOSX_DEPLOYMENT_TARGET=$MACOS CARGO_PROFILE_RELEASE_STRIP=none
        arguments=(--target universal2-apple-darwin)
        if [ "$command" != zigbuild ]; then arguments=(--target "$targets"); fi
        ;;
    *)
        CFLAGS+=" -D_FORTIFY_SOURCE=2"
        arguments=(--target "$targets.$GLIBC")
        ;;
    esac
    # Those of dependencies stay silent.
    if [ "${WARNINGS:-}" = deny ]; then RUSTFLAGS+=" -D warnings"; fi
    export RUSTFLAGS
    CARGO_TARGET_DIR=$GENERATED/cargo cargo-zigbuild "$command" --quiet --locked "${arguments[@]}" "$@"
)

# LLVM's objcopy knows every architecture; rustup's toolchains have it, with a library that it doesn't find by itself.
objcopy_of_llvm() {
    local rustup
    rustup=$(rustc --print target-libdir)/../bin/rust-objcopy
    if [ -x "$rustup" ]; then
        LD_LIBRARY_PATH=$(rustc --print sysroot)/lib "$rustup" "$@"
    else
        need_debian llvm-objcopy llvm
        llvm-objcopy "$@"
    fi
}

# compile NAME: the binary, as it is packed.
compile() {
    zig_cargo "$1" zigbuild --release -p osquery-remote-tls
    # cargo strips symbols and leaves the compilers' names.
    if [ "$1" != macos ]; then objcopy_of_llvm --strip-all --remove-section=.comment "$(binary "$1")"; fi
}

# compile_try_installed: what packaging/test runs in its roots, for as old a glibc.
compile_try_installed() {
    CARGO_PROFILE_DEV_DEBUG=0 zig_cargo x86_64 zigbuild -p testkit --bin try-installed
}

# Where that is.
# shellcheck disable=SC2034
TRY_INSTALLED=$GENERATED/cargo/x86_64-unknown-linux-gnu/debug/try-installed
