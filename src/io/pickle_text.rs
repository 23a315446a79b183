//! The text forms inside pickles: numbers and strings of protocol 0, and the names of opcodes.

use crate::io::quoted;

/// A decimal integer.
pub(crate) fn integer(digits: &str) -> Result<i64, String> {
    digits.parse().map_err(|_| format!("found {}, expected an integer of at most 64 bits", quoted(digits)))
}

/// A quoted string of protocol 0 with Python's escapes.
pub(crate) fn unquote(line: &str) -> Result<Vec<u8>, String> {
    let quote = line.chars().next().filter(|c| matches!(c, '\'' | '"')).ok_or("a string without quotes")?;
    let inner = line[1..].strip_suffix(quote).ok_or("a string without its closing quote")?;
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b @ (b'\\' | b'\'' | b'"')) => b,
                Some(b'x') => {
                    let digits = [bytes.next(), bytes.next()].map(|digit| digit.and_then(|d| (d as char).to_digit(16)));
                    match digits {
                        [Some(high), Some(low)] => (16 * high + low) as u8,
                        _ => return Err("a string with a broken \\x escape".into()),
                    }
                }
                _ => return Err("a string with an unknown escape".into()),
            },
            plain => plain,
        });
    }
    Ok(out)
}

/// Text of protocol 0: Latin-1 bytes with `\uXXXX` and `\UXXXXXXXX` for the rest.
pub(crate) fn raw_unicode(line: &[u8]) -> Result<String, String> {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = match (byte, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                out.push(byte.into());
                rest = after;
                continue;
            }
        };
        let code = after.get(1..1 + digits).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let decoded = code.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
        out.push(decoded.ok_or("text with a broken \\u escape")?);
        rest = &after[1 + digits..];
    }
    Ok(out)
}

/// Name of an opcode that is refused.
pub(crate) fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'P' => "PERSID",
        b'Q' => "BINPERSID",
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{name} ({opcode:#04x})")
}
