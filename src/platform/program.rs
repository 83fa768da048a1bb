//! What a file's first bytes say of where it can be run.

/// Whether this host can run a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It can.
    Runs,
    /// It is a program for another processor.
    OtherProcessor,
    /// It is no program for any.
    NoProgram,
}

/// How many of a file's first bytes are looked at.
pub const HEAD: usize = 20;

/// Of a Mach-O for one processor, with 64 bits; the processor follows.
const MACH_O: [u8; 4] = 0xfeed_facf_u32.to_le_bytes();

/// Of a file with a Mach-O for each of several processors.
const UNIVERSAL: [u8; 4] = 0xcafe_babe_u32.to_be_bytes();

/// As a Mach-O names this program's own processor.
const MACH_O_PROCESSOR: [u8; 4] =
    if cfg!(target_arch = "aarch64") { 0x0100_000c_u32.to_le_bytes() } else { 0x0100_0007_u32.to_le_bytes() };

/// Compares a file's first bytes with those of this program's own file.
#[must_use]
pub fn fit(found: &[u8], own: &[u8]) -> Fit {
    if cfg!(target_os = "macos") { mach_o(found) } else { elf(found, own) }
}

fn elf(found: &[u8], own: &[u8]) -> Fit {
    // ELF's own sign, then the class and the byte order, and the processor.
    if found.get(..4) != own.get(..4) {
        Fit::NoProgram
    } else if found.get(4..6) != own.get(4..6) || found.get(18..HEAD) != own.get(18..HEAD) {
        Fit::OtherProcessor
    } else {
        Fit::Runs
    }
}

fn mach_o(found: &[u8]) -> Fit {
    match found.get(..4) {
        // Ours has both of macOS's.
        Some(sign) if sign == UNIVERSAL => Fit::Runs,
        Some(sign) if sign == MACH_O && found.get(4..8) == Some(&MACH_O_PROCESSOR) => Fit::Runs,
        Some(sign) if sign == MACH_O => Fit::OtherProcessor,
        _ => Fit::NoProgram,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_elf_is_compared_with_our_own() {
        let own = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0";
        assert_eq!(elf(&own, &own), Fit::Runs);
        assert_eq!(elf(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\xb7\0", &own), Fit::OtherProcessor);
        assert_eq!(elf(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x03\0", &own), Fit::OtherProcessor);
        assert_eq!(elf(b"#!/bin/sh\nexit 0\n\n\n", &own), Fit::NoProgram);
    }

    #[test]
    fn a_mach_o_names_its_processor_or_has_several() {
        let thin = |processor: [u8; 4]| [MACH_O, processor].concat();
        assert_eq!(mach_o(&thin(MACH_O_PROCESSOR)), Fit::Runs);
        assert_eq!(mach_o(&thin([0x12, 0, 0, 0])), Fit::OtherProcessor);
        assert_eq!(mach_o(b"\xca\xfe\xba\xbe\0\0\0\x02"), Fit::Runs);
        assert_eq!(mach_o(b"#!/bin/sh\n"), Fit::NoProgram);
        assert_eq!(mach_o(b"\xcf"), Fit::NoProgram);
    }
}
