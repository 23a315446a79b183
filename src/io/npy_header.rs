//! The header of a NumPy `.npy` file: magic, version, length, then a Python dictionary literal, which is parsed by
//! hand and never evaluated.

use crate::io::quoted;

/// Largest rank that is read.
pub(crate) const MAX_RANK: usize = 8;
/// Largest dictionary, in bytes; NumPy itself stops at 10,000.
const MAX_HEADER: usize = 64 << 10;
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Element type of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NpyType {
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    F16,
    F32,
    F64,
    /// Python objects: the data is a pickle.
    Object,
}

impl NpyType {
    /// Bytes of one element; 0 for objects, whose size the header does not tell.
    pub fn size(self) -> usize {
        match self {
            Self::Object => 0,
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The type that NumPy writes as kind and size, `f4` for instance.
    pub fn from_code(code: &str) -> Option<Self> {
        Some(match code {
            "b1" => Self::Bool,
            "i1" => Self::I8,
            "i2" => Self::I16,
            "i4" => Self::I32,
            "i8" => Self::I64,
            "u1" => Self::U8,
            "u2" => Self::U16,
            "u4" => Self::U32,
            "u8" => Self::U64,
            "f2" => Self::F16,
            "f4" => Self::F32,
            "f8" => Self::F64,
            "O" | "O8" | "O4" => Self::Object,
            _ => return None,
        })
    }
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NpyHeader {
    pub ty: NpyType,
    pub big_endian: bool,
    pub fortran_order: bool,
    pub shape: Vec<usize>,
    /// Product of `shape`.
    pub len: usize,
    /// Where the data starts.
    pub data_start: usize,
}

impl NpyHeader {
    /// Parses the start of a file. The size of the data is not compared with the file here.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (text, data_start) = split(bytes)?;
        let mut parser = Literal { rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        parser.expect('{')?;
        while !parser.take('}') {
            let key = parser.string()?;
            parser.expect(':')?;
            let repeated = match key {
                "descr" => descr.replace(parser.descr()?).is_some(),
                "fortran_order" => fortran_order.replace(parser.boolean()?).is_some(),
                "shape" => shape.replace(parser.tuple()?).is_some(),
                other => return Err(format!("header: unknown field {}", quoted(other))),
            };
            if repeated {
                return Err(format!("header: field {key:?} occurs twice"));
            }
            if !parser.take(',') {
                parser.expect('}')?;
                break;
            }
        }
        parser.end()?;
        let missing = |field: &str| format!("header: field {field:?} is missing");
        let (ty, big_endian) = descr.ok_or_else(|| missing("descr"))?;
        let shape: Vec<usize> = shape.ok_or_else(|| missing("shape"))?;
        let fortran_order = fortran_order.ok_or_else(|| missing("fortran_order"))?;
        let len = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        let len = len.ok_or_else(|| format!("field \"shape\": {shape:?} overflows"))?;
        Ok(Self { ty, big_endian, fortran_order, shape, len, data_start })
    }

    /// Range of the data, after checking that the file has exactly that many bytes.
    pub fn data_range(&self, file_len: usize) -> Result<std::ops::Range<usize>, String> {
        let found = file_len - self.data_start;
        match self.len.checked_mul(self.ty.size()) {
            Some(expected) if expected == found => Ok(self.data_start..file_len),
            Some(expected) => Err(format!("data: found {found} bytes, expected {expected} for shape {:?}", self.shape)),
            None => Err(format!("field \"shape\": {:?} overflows", self.shape)),
        }
    }
}

/// Header of a little-endian f32 file of `shape`, at least `min_len` bytes long, as NumPy aligns it: 64 bytes.
pub(crate) fn encode_f32(shape: &[usize], min_len: usize) -> Vec<u8> {
    encode("<f4", shape, min_len)
}

/// Header of a file of elements of type `descr`, as NumPy names it.
pub(crate) fn encode(descr: &str, shape: &[usize], min_len: usize) -> Vec<u8> {
    let extents: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    // A tuple of one is written `(3,)`, longer ones without the last comma, as NumPy does.
    let extents = if shape.len() == 1 { extents.trim_end() } else { extents.trim_end_matches(", ") };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
    let total = (MAGIC.len() + 4 + text.len() + 1).max(min_len).next_multiple_of(64);
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    // At most 8 extents of 20 digits: far below the limit of version 1.
    out.extend_from_slice(&((total - MAGIC.len() - 4) as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.resize(total - 1, b' ');
    out.push(b'\n');
    out
}

/// The dictionary text and where it ends.
fn split(bytes: &[u8]) -> Result<(&str, usize), String> {
    if !bytes.starts_with(MAGIC) {
        return Err("found no NumPy magic number, expected a .npy file".into());
    }
    let (start, length) = match bytes.get(6..) {
        Some([1, _, a, b, ..]) => (10, u16::from_le_bytes([*a, *b]) as usize),
        Some([2 | 3, _, a, b, c, d, ..]) => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        Some([version, ..]) if !(1..=3).contains(version) => {
            return Err(format!("format version: found {version}, expected 1, 2 or 3"));
        }
        _ => return Err("header: file truncated".into()),
    };
    if length > MAX_HEADER {
        return Err(format!("header length: found {length}, expected at most {MAX_HEADER}"));
    }
    let text = bytes.get(start..start + length);
    let text = text.ok_or_else(|| format!("header length: found {length}, but the file has {} bytes", bytes.len()))?;
    // Versions 1 and 2 are Latin-1, version 3 is UTF-8; every type that is read here is plain ASCII.
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii());
    Ok((text.ok_or("header: expected plain ASCII (named fields are not supported)")?, start + length))
}

/// A reader of the few Python literals that a header consists of.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip_blanks();
        let after = self.rest.strip_prefix(wanted);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.take(wanted) { Ok(()) } else { Err(self.unexpected(&format!("{wanted:?}"))) }
    }

    fn unexpected(&self, wanted: &str) -> String {
        let found: String = self.rest.chars().take(20).collect();
        format!("header: found {found:?}, expected {wanted}")
    }

    /// A quoted string without escapes.
    fn string(&mut self) -> Result<&'a str, String> {
        self.skip_blanks();
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let quote = quote.ok_or_else(|| self.unexpected("a string"))?;
        let (text, rest) = self.rest[1..].split_once(quote).ok_or_else(|| self.unexpected("a closed string"))?;
        if text.contains('\\') {
            return Err(self.unexpected("a string without escapes"));
        }
        self.rest = rest;
        Ok(text)
    }

    /// An element type and whether it is big-endian.
    fn descr(&mut self) -> Result<(NpyType, bool), String> {
        self.skip_blanks();
        if self.rest.starts_with('[') {
            return Err("field \"descr\": found a structured type, expected plain numbers".into());
        }
        let text = self.string()?;
        let (order, code) = text.split_at_checked(1).unwrap_or(("", ""));
        let ty = NpyType::from_code(code).filter(|ty| match order {
            "|" => ty.size() <= 1,
            "<" | ">" => *ty != NpyType::Object,
            _ => false,
        });
        let ty = ty.ok_or_else(|| {
            format!(
                "field \"descr\": found {}, expected bool, an integer of 1 to 8 bytes, or a float of 2 to 8",
                quoted(text)
            )
        })?;
        Ok((ty, order == ">"))
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.skip_blanks();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    /// A tuple of extents; Python 2 wrote some of them with a final L.
    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        self.expect('(')?;
        let mut out = Vec::new();
        while !self.take(')') {
            if out.len() == MAX_RANK {
                return Err(format!("field \"shape\": found more than {MAX_RANK} dimensions"));
            }
            self.skip_blanks();
            let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at(end);
            if digits.is_empty() {
                return Err(self.unexpected("a number of elements"));
            }
            let extent = digits.parse().map_err(|_| format!("field \"shape\": {} is too large", quoted(digits)))?;
            out.push(extent);
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            if !self.take(',') {
                // `(3)` is a number in Python, not a tuple.
                if out.len() == 1 {
                    return Err(self.unexpected("a comma"));
                }
                self.expect(')')?;
                break;
            }
        }
        Ok(out)
    }

    fn end(&mut self) -> Result<(), String> {
        self.skip_blanks();
        if self.rest.is_empty() { Ok(()) } else { Err(self.unexpected("the end of the header")) }
    }
}
