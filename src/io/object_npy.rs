//! Object `.npy` files: arrays of Python objects, as `numpy.save` writes lists of rows, `[image, mass]` pairs and
//! dictionaries of arrays. Their pickles are read by `io::pickle`, which executes nothing.

use std::path::Path;

use crate::error::{Error, Result};
use crate::io::mapped::map_file;
use crate::io::npy::{Npy, NpyData, decode, parse_npy, with_c_order};
use crate::io::npy_header::{MAX_RANK, NpyHeader, NpyType};
use crate::io::pickle::{ArrayState, Id, MAX_VALUES, Node, Pickle, text_of};
use crate::io::quoted;

/// Deepest nesting of lists, dictionaries and arrays in each other.
const MAX_DEPTH: usize = 16;

/// A Python value.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectValue {
    /// `None`.
    None,
    /// A bool, integer or float, or a numpy scalar.
    Number(f64),
    /// Text.
    Text(String),
    /// An array of numbers.
    Array(Npy),
    /// An array of objects.
    Objects(ObjectArray),
    /// A list or tuple.
    List(Vec<ObjectValue>),
    /// A dictionary with text keys, in its order, each key once.
    Dict(Vec<(String, ObjectValue)>),
}

/// An array of Python objects.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectArray {
    /// Shape; empty for a single object, a dictionary for instance.
    pub shape: Vec<usize>,
    /// Objects in row-major order.
    pub items: Vec<ObjectValue>,
}

/// Reads an object `.npy` file. [`Error::Input`] for a plain array (see [`crate::io::read_npy`]), a damaged file, or
/// one that holds anything but numbers, text, lists, dictionaries and arrays of these.
pub fn read_object_npy(path: impl AsRef<Path>) -> Result<ObjectArray> {
    let path = path.as_ref();
    parse_object_npy(&map_file(path)?).map_err(|reason| Error::input(path, reason))
}

/// Parses the content of an object `.npy` file; the error lacks the file's name.
pub fn parse_object_npy(bytes: &[u8]) -> Result<ObjectArray, String> {
    let header = NpyHeader::parse(bytes)?;
    if header.ty != NpyType::Object {
        return Err(format!("field \"descr\": found {:?}, expected Python objects", header.ty));
    }
    let pickle = Pickle::parse(&bytes[header.data_start..])?;
    // One value may be referred to many times: what comes out is limited by what came in.
    let budget = bytes.len().saturating_mul(4).saturating_add(1 << 20);
    let mut reader = Reader { pickle: &pickle, values_left: MAX_VALUES, bytes_left: budget };
    match reader.value(pickle.root, 0)? {
        ObjectValue::Objects(array) if array.shape == header.shape => Ok(array),
        ObjectValue::Objects(array) => {
            Err(format!("shape: the header says {:?}, the pickle {:?}", header.shape, array.shape))
        }
        _ => Err("pickle: expected an array of objects".into()),
    }
}

/// What a `.npy` file holds.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyNpy {
    /// An array of numbers.
    Numbers(Npy),
    /// An array of Python objects.
    Objects(ObjectArray),
}

/// Reads a `.npy` file of either kind. [`Error::Input`] as for [`crate::io::read_npy`] and [`read_object_npy`].
pub fn read_any_npy(path: impl AsRef<Path>) -> Result<AnyNpy> {
    let path = path.as_ref();
    parse_any_npy(&map_file(path)?).map_err(|reason| Error::input(path, reason))
}

/// Parses the content of a `.npy` file of either kind; the error lacks the file's name.
pub fn parse_any_npy(bytes: &[u8]) -> Result<AnyNpy, String> {
    match NpyHeader::parse(bytes)?.ty {
        NpyType::Object => parse_object_npy(bytes).map(AnyNpy::Objects),
        _ => parse_npy(bytes).map(AnyNpy::Numbers),
    }
}

struct Reader<'p, 'a> {
    pickle: &'p Pickle<'a>,
    /// Values and bytes of text and arrays that may still be made.
    values_left: usize,
    bytes_left: usize,
}

impl Reader<'_, '_> {
    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or("pickle: refers to the same values too often")?;
        Ok(())
    }

    fn value(&mut self, id: Id, depth: usize) -> Result<ObjectValue, String> {
        if depth > MAX_DEPTH {
            return Err(format!("pickle: values are nested deeper than {MAX_DEPTH}"));
        }
        let left = self.values_left.checked_sub(1);
        self.values_left = left.ok_or("pickle: refers to the same values too often")?;
        let pickle = self.pickle;
        Ok(match &pickle.nodes[id] {
            Node::None => ObjectValue::None,
            Node::Bool(value) => ObjectValue::Number(u8::from(*value).into()),
            Node::Int(value) => ObjectValue::Number(*value as f64),
            Node::Float(value) => ObjectValue::Number(*value),
            node @ (Node::Text(_) | Node::Bytes(_)) => {
                let text = text_of(node).ok_or("pickle: found bytes where a value is expected")?;
                self.spend(text.len())?;
                ObjectValue::Text(text.to_owned())
            }
            Node::Tuple(items) | Node::List(items) => ObjectValue::List(self.values(items, depth)?),
            Node::Dict(entries) => ObjectValue::Dict(self.entries(entries, depth)?),
            Node::Array(Some(state)) if state.ty == NpyType::Object => {
                let Node::List(items) = &pickle.nodes[state.elements] else {
                    return Err("pickle: an array of objects without a list of them".into());
                };
                expect_len(&state.shape, 1, items.len())?;
                ObjectValue::Objects(ObjectArray { shape: state.shape.clone(), items: self.values(items, depth)? })
            }
            Node::Array(Some(state)) => ObjectValue::Array(self.array(state)?),
            Node::Array(None) | Node::Dtype { .. } | Node::Global(_) => {
                return Err("pickle: found a type or function where a value is expected".into());
            }
        })
    }

    fn values(&mut self, items: &[Id], depth: usize) -> Result<Vec<ObjectValue>, String> {
        items.iter().map(|&id| self.value(id, depth + 1)).collect()
    }

    fn entries(&mut self, entries: &[(Id, Id)], depth: usize) -> Result<Vec<(String, ObjectValue)>, String> {
        let mut out = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for &(key, value) in entries {
            let name = text_of(&self.pickle.nodes[key]).ok_or("dictionary: found a key that is no text")?;
            if !seen.insert(name) {
                return Err(format!("dictionary: duplicate key {}", quoted(name)));
            }
            self.spend(name.len())?;
            out.push((name.to_owned(), self.value(value, depth + 1)?));
        }
        Ok(out)
    }

    fn array(&mut self, state: &ArrayState) -> Result<Npy, String> {
        let Node::Bytes(bytes) = &self.pickle.nodes[state.elements] else {
            return Err("pickle: an array of numbers without its bytes".into());
        };
        expect_len(&state.shape, state.ty.size(), bytes.len())?;
        self.spend(bytes.len())?;
        let data = decode(state.ty, state.big_endian, bytes)?;
        let data = if state.fortran_order { with_c_order(data, &state.shape)? } else { data };
        Ok(Npy { shape: state.shape.clone(), data })
    }
}

fn expect_len(shape: &[usize], size: usize, found: usize) -> Result<(), String> {
    match shape.iter().try_fold(size, |product, &extent| product.checked_mul(extent)) {
        Some(expected) if expected == found => Ok(()),
        _ => Err(format!("array of shape {shape:?} with elements of {size}: found {found}")),
    }
}

impl ObjectArray {
    /// The arrays of a file that holds one dictionary of arrays, as checkpoints are saved. Numbers become arrays
    /// without axes.
    pub fn into_named_arrays(self) -> Result<Vec<(String, Npy)>, String> {
        let mut items = self.items;
        let (true, Some(ObjectValue::Dict(entries))) = (items.len() == 1, items.pop()) else {
            return Err("found an array of objects, expected one dictionary of arrays".into());
        };
        let named = entries.into_iter().map(|(name, value)| match value {
            ObjectValue::Array(array) => Ok((name, array)),
            ObjectValue::Number(number) => Ok((name, Npy { shape: Vec::new(), data: NpyData::F64(vec![number]) })),
            _ => Err(format!("dictionary entry {}: expected an array of numbers", quoted(&name))),
        });
        named.collect()
    }

    /// Shape and row-major elements of nested rows of numbers, which must all have the same length.
    pub fn to_numbers(&self) -> Result<(Vec<usize>, Vec<f64>), String> {
        let (inner, values) = stack(&self.items)?;
        within_rank([&self.shape[..], &inner].concat(), values)
    }
}

impl ObjectValue {
    /// Shape and row-major elements of a number, an array, or nested rows of these of equal length.
    pub fn to_numbers(&self) -> Result<(Vec<usize>, Vec<f64>), String> {
        match self {
            Self::Number(value) => Ok((Vec::new(), vec![*value])),
            Self::Array(array) => Ok((array.shape.clone(), array.data.to_f64())),
            Self::Objects(array) => array.to_numbers(),
            Self::List(items) => {
                let (inner, values) = stack(items)?;
                within_rank([&[items.len()][..], &inner].concat(), values)
            }
            Self::None | Self::Text(_) | Self::Dict(_) => {
                Err("found text, a dictionary or None, expected numbers".into())
            }
        }
    }
}

/// Shape of one item, which all share, and the elements of all.
fn stack(items: &[ObjectValue]) -> Result<(Vec<usize>, Vec<f64>), String> {
    let mut shape = None;
    let mut out = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let (found, values) = item.to_numbers()?;
        let expected = shape.get_or_insert_with(|| found.clone());
        if *expected != found {
            return Err(format!("row {i}: found shape {found:?}, expected {expected:?} as in row 0"));
        }
        out.extend(values);
    }
    Ok((shape.unwrap_or_default(), out))
}

fn within_rank(shape: Vec<usize>, values: Vec<f64>) -> Result<(Vec<usize>, Vec<f64>), String> {
    if shape.len() > MAX_RANK {
        return Err(format!("rows of {} dimensions, expected at most {MAX_RANK}", shape.len()));
    }
    Ok((shape, values))
}
