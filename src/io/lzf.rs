//! LZF decompression (Marc Lehmann's liblzf), the filter that h5py calls `lzf`.
//!
//! A control byte below 32 starts a run of 1 to 32 literal bytes; any other is a reference backwards: three bits of
//! length (7: one more byte of length follows), thirteen bits of distance.

/// The bytes that `input` stands for, of which there must be at most `limit`.
///
/// # Errors
/// A reason, for input that ends early, refers to before its start, or gives more than `limit` bytes.
pub fn decompress(input: &[u8], limit: usize) -> Result<Vec<u8>, String> {
    // A reference of three bytes gives at most 264: no valid input needs more room than that.
    let mut out: Vec<u8> = Vec::new();
    out.try_reserve(limit.min(input.len().saturating_mul(88))).map_err(|_| "LZF: no memory")?;
    let mut rest = input;
    while let Some((&control, after)) = rest.split_first() {
        rest = after;
        let control = usize::from(control);
        if control < 32 {
            let literal = rest.split_at_checked(control + 1).ok_or("LZF: input ends within literal bytes")?;
            if literal.0.len() > limit - out.len() {
                return Err(format!("LZF: more than {limit} bytes"));
            }
            out.extend_from_slice(literal.0);
            rest = literal.1;
            continue;
        }
        let mut next = || {
            let (&byte, after) = rest.split_first().ok_or("LZF: input ends within a reference")?;
            rest = after;
            Ok::<usize, String>(byte.into())
        };
        let length = 2 + if control >> 5 == 7 { 7 + next()? } else { control >> 5 };
        let distance = 1 + ((control & 31) << 8 | next()?);
        let from = out.len().checked_sub(distance).ok_or("LZF: a reference to before the start")?;
        if length > limit - out.len() {
            return Err(format!("LZF: more than {limit} bytes"));
        }
        // Byte by byte: a reference may overlap what it makes.
        for i in from..from + length {
            out.push(out[i]);
        }
    }
    Ok(out)
}
