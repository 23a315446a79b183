//! The part of the ZIP format that `.npz` files use: stored and deflated members of one volume, with or without the
//! 64-bit fields, read from bytes that are already there.
//!
//! Format: PKWARE's APPNOTE 6.3. Sizes come from the central directory and are held against the length of the file;
//! a member is decompressed to exactly its size and its checksum compared.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use flate2::{Crc, Decompress, FlushDecompress, Status};

use crate::io::{quoted, try_with_capacity};

const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// Identifies the 64-bit sizes among the extra fields.
const EXTRA_64: u16 = 1;
/// Most members that are listed.
const MAX_MEMBERS: u64 = 1 << 16;

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub name: String,
    /// Bytes of its content.
    pub size: usize,
    pub deflated: bool,
    /// Where its possibly compressed bytes lie.
    pub range: Range<usize>,
    crc: u32,
}

/// Little-endian fields of a record, read one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn at(bytes: &'a [u8], offset: u64, signature: &[u8], what: &str) -> Result<Self, String> {
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
        let rest = rest.and_then(|r| r.strip_prefix(signature));
        rest.map(Self).ok_or_else(|| format!("zip: no {what} at byte {offset}"))
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.0.split_at_checked(length).ok_or("zip: file truncated")?;
        self.0 = rest;
        Ok(head)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, String> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.slice(N)?);
        Ok(u64::from_le_bytes(wide))
    }
}

/// Every member, in the order of the central directory.
pub(crate) fn members(bytes: &[u8]) -> Result<Vec<Member>, String> {
    let (count, mut offset) = directory(bytes)?;
    if count > MAX_MEMBERS {
        return Err(format!("zip: found {count} members, expected at most {MAX_MEMBERS}"));
    }
    let (mut out, mut names) = (Vec::new(), HashSet::new());
    for _ in 0..count {
        let mut fields = Fields::at(bytes, offset, CENTRAL, "directory entry")?;
        let member = member(bytes, &mut fields)?;
        offset = (bytes.len() - fields.0.len()) as u64;
        if !names.insert(member.name.clone()) {
            return Err(format!("zip: two members named {}", quoted(&member.name)));
        }
        out.push(member);
    }
    Ok(out)
}

/// Number of members and where the central directory starts.
fn directory(bytes: &[u8]) -> Result<(u64, u64), String> {
    // The record ends with a comment of up to 65535 bytes, so it is looked for from the end.
    let lowest = bytes.len().saturating_sub(22 + 0xffff);
    let tail = &bytes[lowest..];
    let fits = |&at: &usize| {
        let comment = tail.get(at + 20..at + 22).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
        tail[at..].starts_with(END) && comment == tail.len().checked_sub(at + 22)
    };
    let end = lowest + (0..tail.len()).rev().find(fits).ok_or("zip: no end record; the file may be truncated")?;
    let mut fields = Fields::at(bytes, end as u64, END, "end record")?;
    let (disk, start_disk) = (fields.number::<2>()?, fields.number::<2>()?);
    let (_, count, _, offset) =
        (fields.number::<2>()?, fields.number::<2>()?, fields.number::<4>()?, fields.number::<4>()?);
    let wide = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(LOCATOR_64));
    match wide {
        Some(at) if count == 0xffff || offset == 0xffff_ffff => {
            let mut locator = Fields::at(bytes, at as u64, LOCATOR_64, "locator")?;
            locator.number::<4>()?;
            let mut fields = Fields::at(bytes, locator.number::<8>()?, END_64, "64-bit end record")?;
            fields.slice(28)?;
            Ok((fields.number::<8>()?, {
                fields.number::<8>()?;
                fields.number::<8>()?
            }))
        }
        _ if disk != 0 || start_disk != 0 => Err("zip: one of several volumes".into()),
        _ => Ok((count, offset)),
    }
}

/// One entry of the central directory, with the place of its data from the local header.
fn member(bytes: &[u8], fields: &mut Fields<'_>) -> Result<Member, String> {
    fields.slice(4)?;
    let (flags, method) = (fields.number::<2>()?, fields.number::<2>()?);
    fields.slice(4)?;
    let crc = fields.number::<4>()? as u32;
    let (mut packed, mut size) = (fields.number::<4>()?, fields.number::<4>()?);
    let (name, extra, comment) = (fields.number::<2>()?, fields.number::<2>()?, fields.number::<2>()?);
    fields.slice(8)?;
    let mut local = fields.number::<4>()?;
    let name = fields.slice(name as usize)?;
    let extra = fields.slice(extra as usize)?;
    fields.slice(comment as usize)?;
    let name = std::str::from_utf8(name).map_err(|_| "zip: a name that is not UTF-8")?.to_owned();
    widen(extra, [&mut size, &mut packed, &mut local])?;

    let refuse = |reason: String| Err(format!("zip: member {}: {reason}", quoted(&name)));
    if flags & 1 != 0 {
        return refuse("encrypted".into());
    }
    if method != 0 && method != 8 {
        return refuse(format!("found compression method {method}, expected stored (0) or deflated (8)"));
    }
    let mut header = Fields::at(bytes, local, LOCAL, "local header")?;
    header.slice(22)?;
    let (name_len, extra_len) = (header.number::<2>()?, header.number::<2>()?);
    header.slice(name_len as usize)?;
    header.slice(extra_len as usize)?;
    let start = bytes.len() - header.0.len();
    let packed_len = usize::try_from(packed).ok().filter(|&n| n <= header.0.len());
    let (Some(packed_len), Ok(size)) = (packed_len, usize::try_from(size)) else {
        return refuse(format!("found {} bytes, expected {packed}: the file is truncated", header.0.len()));
    };
    // Deflate gives at most 1032 bytes for one.
    let most = if method == 0 { packed_len } else { packed_len.saturating_mul(1032) };
    if size > most || (method == 0 && size != packed_len) {
        return refuse(format!("{packed_len} stored bytes cannot hold {size}"));
    }
    Ok(Member { name, size, deflated: method == 8, range: start..start + packed_len, crc })
}

/// Replaces those of `values` that are all ones by their 64-bit extra fields, in their order.
fn widen(extra: &[u8], values: [&mut u64; 3]) -> Result<(), String> {
    let mut fields = Fields(extra);
    while fields.0.len() >= 4 {
        let (id, length) = (fields.number::<2>()?, fields.number::<2>()?);
        let mut field = Fields(fields.slice(length as usize)?);
        if id == u64::from(EXTRA_64) {
            for value in values {
                if *value == 0xffff_ffff {
                    *value = field.number::<8>()?;
                }
            }
            break;
        }
    }
    Ok(())
}

/// Content of a member: shared where it is stored, made where it is deflated.
pub(crate) fn content<'a>(bytes: &'a [u8], member: &Member) -> Result<Cow<'a, [u8]>, String> {
    let refuse = |reason: &str| format!("zip: member {}: {reason}", quoted(&member.name));
    let stored = &bytes[member.range.clone()];
    let content = if member.deflated {
        let mut out = try_with_capacity(member.size).ok_or_else(|| refuse("no memory"))?;
        let mut inflate = Decompress::new(false);
        let status = inflate
            .decompress_vec(stored, &mut out, FlushDecompress::Finish)
            .map_err(|e| refuse(&format!("damaged: {e}")))?;
        // A stream of exactly `size` bytes may still have its end marker to read.
        let ended = status == Status::StreamEnd
            || matches!(
                inflate.decompress(&stored[inflate.total_in() as usize..], &mut [], FlushDecompress::Finish),
                Ok(Status::StreamEnd)
            );
        if !ended || out.len() != member.size {
            return Err(refuse("damaged: its size is not what the directory says"));
        }
        Cow::Owned(out)
    } else {
        Cow::Borrowed(stored)
    };
    let mut crc = Crc::new();
    crc.update(&content);
    if crc.sum() == member.crc { Ok(content) } else { Err(refuse("damaged: its checksum does not match")) }
}
