//! A reader for the pickles inside object `.npy` files. It builds plain data out of the few opcodes and the eight
//! globals that `numpy.save` writes for arrays, numbers, strings, lists, tuples and dictionaries; any other opcode or
//! global is refused by name. Nothing is imported, called or executed.
//!
//! Values live in one arena and refer to each other by index, so a pickle that refers to one value many times costs
//! one entry each time, and a value that contains itself is data like any other until someone walks it.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::io::npy::{NpyData, decode};
use crate::io::npy_header::{MAX_RANK, NpyType};
use crate::io::pickle_text::{integer, opcode_name, raw_unicode, unquote};
use crate::io::quoted;

/// Most values in one pickle. Every value takes at least a byte of the file.
pub(crate) const MAX_VALUES: usize = 4 << 20;

/// Index of a value in the arena.
pub(crate) type Id = usize;

/// A value.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Cow<'a, [u8]>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Dtype {
        ty: NpyType,
        big_endian: bool,
    },
    /// An array, before its state is set and after.
    Array(Option<ArrayState>),
}

/// A function or class that may be named. Naming one runs nothing: REDUCE does what it would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    Reconstruct,
    FromBuffer,
    Scalar,
    NdArray,
    Dtype,
    Encode,
    Bytes,
    OrderedDict,
}

/// Type, shape and elements of an array: elements are a `Bytes` node, or a `List` in row-major order for objects.
#[derive(Clone, Debug)]
pub(crate) struct ArrayState {
    pub ty: NpyType,
    pub big_endian: bool,
    pub fortran_order: bool,
    pub shape: Vec<usize>,
    pub elements: Id,
}

/// Every value of a pickle and the one it stands for.
pub(crate) struct Pickle<'a> {
    pub nodes: Vec<Node<'a>>,
    pub root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads one pickle that fills `input`.
    pub fn parse(input: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine {
            input,
            position: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let at = machine.position;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) if machine.position == input.len() => return Ok(Self { nodes: machine.nodes, root }),
                Ok(Some(_)) => return Err(format!("pickle: {} bytes after its end", input.len() - machine.position)),
                Err(reason) => return Err(format!("pickle, byte {at}: {reason}")),
            }
        }
    }
}

struct Machine<'a> {
    input: &'a [u8],
    position: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Stack heights at which a MARK was set.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

/// Result of a step; the caller adds the place.
type Step<T = ()> = Result<T, String>;

impl<'a> Machine<'a> {
    /// One opcode; gives the final value at STOP.
    fn step(&mut self) -> Step<Option<Id>> {
        let opcode = self.byte()?;
        match opcode {
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(format!("protocol: found {version}, expected 0 to 5"));
                }
            }
            0x95 => drop(self.take::<8>()?),
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            b'I' => match self.line()? {
                "00" => self.push(Node::Bool(false))?,
                "01" => self.push(Node::Bool(true))?,
                digits => self.push(Node::Int(integer(digits)?))?,
            },
            b'L' => {
                let digits = self.line()?;
                self.push(Node::Int(integer(digits.strip_suffix('L').unwrap_or(digits))?))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.take()?);
                self.push(Node::Int(value.into()))?;
            }
            b'K' => {
                let value = self.byte()?;
                self.push(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.take()?);
                self.push(Node::Int(value.into()))?;
            }
            0x8a => {
                let length = self.byte()?.into();
                self.long(length)?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.take()?).into();
                self.long(length)?;
            }
            b'F' => {
                let text = self.line()?;
                let value = text.parse().map_err(|_| format!("found {}, expected a float", quoted(text)))?;
                self.push(Node::Float(value))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.take()?);
                self.push(Node::Float(value))?;
            }
            b'C' | b'U' | b'B' | b'T' | 0x8e | 0x96 => {
                let bytes = match opcode {
                    b'C' | b'U' => self.counted::<1>()?,
                    b'B' | b'T' => self.counted::<4>()?,
                    _ => self.counted::<8>()?,
                };
                self.push(Node::Bytes(bytes.into()))?;
            }
            0x8c | b'X' | 0x8d => {
                let bytes = match opcode {
                    0x8c => self.counted::<1>()?,
                    b'X' => self.counted::<4>()?,
                    _ => self.counted::<8>()?,
                };
                let text = std::str::from_utf8(bytes).map_err(|e| format!("text is not UTF-8: {e}"))?;
                self.push(Node::Text(text.to_owned()))?;
            }
            b'S' => {
                let bytes = unquote(self.line()?)?;
                self.push(Node::Bytes(bytes.into()))?;
            }
            b'V' => {
                let line = self.line_bytes()?;
                self.push(Node::Text(raw_unicode(line)?))?;
            }
            b')' => self.push(Node::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let items = self.pop_many((opcode - 0x84).into())?;
                self.push(Node::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items))?;
            }
            b']' => self.push(Node::List(Vec::new()))?,
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items))?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Dict(pairs(&items)?))?;
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.extend_list(items)?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.extend_dict(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }
            b'p' => {
                let key = integer(self.line()?)?;
                self.memorise(key.try_into().map_err(|_| "negative memo index")?)?;
            }
            b'q' => {
                let key = self.byte()?.into();
                self.memorise(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.take()?).into();
                self.memorise(key)?;
            }
            0x94 => self.memorise(self.memo.len() as u64)?,
            b'g' => {
                let key = integer(self.line()?)?;
                self.recall(key.try_into().map_err(|_| "negative memo index")?)?;
            }
            b'h' => {
                let key = self.byte()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.take()?).into();
                self.recall(key)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(global(module, name)?))?;
            }
            0x93 => {
                let [module, name] = self.pop_array()?;
                let found = global(self.text(module)?, self.text(name)?)?;
                self.push(Node::Global(found))?;
            }
            b'R' => {
                let [function, arguments] = self.pop_array()?;
                let made = self.reduce(function, arguments)?;
                self.push(made)?;
            }
            b'b' => self.build()?,
            other => return Err(format!("opcode {} is not one that numpy.save writes for arrays", opcode_name(other))),
        }
        Ok(None)
    }

    fn byte(&mut self) -> Step<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.input[self.position..].first_chunk().ok_or("file truncated")?;
        self.position += N;
        Ok(*bytes)
    }

    fn slice(&mut self, length: u64) -> Step<&'a [u8]> {
        let left = &self.input[self.position..];
        let bytes = usize::try_from(length).ok().and_then(|n| left.get(..n));
        let bytes = bytes.ok_or_else(|| format!("length: found {length}, but {} bytes are left", left.len()))?;
        self.position += bytes.len();
        Ok(bytes)
    }

    /// Bytes after their number in `N` little-endian bytes.
    fn counted<const N: usize>(&mut self) -> Step<&'a [u8]> {
        let mut length = [0; 8];
        length[..N].copy_from_slice(&self.take::<N>()?);
        self.slice(u64::from_le_bytes(length))
    }

    fn line_bytes(&mut self) -> Step<&'a [u8]> {
        let left = &self.input[self.position..];
        let end = left.iter().position(|&b| b == b'\n').ok_or("file truncated: no end of line")?;
        self.position += end + 1;
        Ok(&left[..end])
    }

    fn line(&mut self) -> Step<&'a str> {
        let line = self.line_bytes()?;
        std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).map_err(|_| "a line is not text".into())
    }

    /// A two's complement integer of `length` bytes, least significant first.
    fn long(&mut self, length: u64) -> Step {
        let bytes = self.slice(length)?;
        if bytes.len() > 8 {
            return Err(format!("an integer of {} bytes, expected at most 8", bytes.len()));
        }
        let fill = if bytes.last().is_some_and(|top| top & 0x80 != 0) { 0xff } else { 0 };
        let mut value = [fill; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(value)))
    }

    fn push(&mut self, node: Node<'a>) -> Step {
        if self.nodes.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// The lowest stack height that the current opcode may reach: nothing below an open MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Id> {
        self.pop_array().map(|[id]| id)
    }

    fn pop_array<const N: usize>(&mut self) -> Step<[Id; N]> {
        let items = self.pop_many(N)?;
        Ok(std::array::from_fn(|i| items[i]))
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Id>> {
        match self.stack.len().checked_sub(count) {
            Some(height) if height >= self.floor() => Ok(self.stack.split_off(height)),
            _ => Err("stack underflow".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let height = self.marks.pop().ok_or("no mark is open")?;
        Ok(self.stack.split_off(height))
    }

    fn top(&self) -> Step<Id> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| "stack underflow".into())
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Step {
        let top = self.top()?;
        match &mut self.nodes[top] {
            Node::List(list) => list.extend(items),
            _ => return Err("APPEND to something that is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Step {
        let (top, items) = (self.top()?, pairs(items)?);
        match &mut self.nodes[top] {
            Node::Dict(dict) => dict.extend(items),
            _ => return Err("SETITEM on something that is no dictionary".into()),
        }
        Ok(())
    }

    fn memorise(&mut self, key: u64) -> Step {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Step {
        let id = *self.memo.get(&key).ok_or_else(|| format!("nothing is stored under memo index {key}"))?;
        self.stack.push(id);
        Ok(())
    }

    /// Text, or the plain ASCII byte string that Python 2 wrote for it.
    fn text(&self, id: Id) -> Step<&str> {
        text_of(&self.nodes[id]).ok_or_else(|| "found something else, expected text".into())
    }

    fn tuple(&self, id: Id) -> Step<&[Id]> {
        match &self.nodes[id] {
            Node::Tuple(items) => Ok(items),
            _ => Err("found something else, expected a tuple".into()),
        }
    }

    fn bytes(&self, id: Id) -> Step<&[u8]> {
        match &self.nodes[id] {
            Node::Bytes(bytes) => Ok(bytes),
            _ => Err("found something else, expected bytes".into()),
        }
    }

    fn dtype(&self, id: Id) -> Step<(NpyType, bool)> {
        match self.nodes[id] {
            Node::Dtype { ty, big_endian } => Ok((ty, big_endian)),
            _ => Err("found something else, expected a dtype".into()),
        }
    }

    fn shape(&self, id: Id) -> Step<Vec<usize>> {
        let extents = self.tuple(id)?;
        if extents.len() > MAX_RANK {
            return Err(format!("an array of {} dimensions, expected at most {MAX_RANK}", extents.len()));
        }
        let extent = |&id: &Id| match self.nodes[id] {
            Node::Int(extent) => usize::try_from(extent).map_err(|_| format!("shape: found {extent}")),
            _ => Err("shape: expected integers".into()),
        };
        extents.iter().map(extent).collect()
    }

    fn flag(&self, id: Id) -> Step<bool> {
        match self.nodes[id] {
            Node::Bool(flag) => Ok(flag),
            Node::Int(flag @ (0 | 1)) => Ok(flag == 1),
            _ => Err("found something else, expected True or False".into()),
        }
    }

    /// What calling `function` would make.
    fn reduce(&self, function: Id, arguments: Id) -> Step<Node<'a>> {
        let Node::Global(function) = self.nodes[function] else {
            return Err("REDUCE of something that is no function".into());
        };
        let arguments = self.tuple(arguments)?;
        match (function, arguments) {
            // An empty array of a class, whose content comes with BUILD.
            (Global::Reconstruct, &[class, _, _]) => match self.nodes[class] {
                Node::Global(Global::NdArray) => Ok(Node::Array(None)),
                _ => Err("array class: expected numpy.ndarray".into()),
            },
            (Global::FromBuffer, &[buffer, dtype, shape, order]) => {
                self.bytes(buffer)?;
                let (ty, big_endian) = self.dtype(dtype)?;
                let fortran_order = match self.text(order)? {
                    "C" => false,
                    "F" => true,
                    other => return Err(format!("array order: found {}, expected C or F", quoted(other))),
                };
                let shape = self.shape(shape)?;
                Ok(Node::Array(Some(ArrayState { ty, big_endian, fortran_order, shape, elements: buffer })))
            }
            (Global::Dtype, &[code, _, _]) => {
                let code = self.text(code)?;
                let ty = NpyType::from_code(code).ok_or_else(|| {
                    format!(
                        "dtype: found {}, expected bool, an integer, a float of 2 to 8 bytes or objects",
                        quoted(code)
                    )
                })?;
                Ok(Node::Dtype { ty, big_endian: false })
            }
            (Global::Scalar, &[dtype, bytes]) => {
                let (ty, big_endian) = self.dtype(dtype)?;
                scalar(ty, big_endian, self.bytes(bytes)?)
            }
            // How protocols 0 to 2 write bytes: as text with one character a byte.
            (Global::Encode, &[text, codec]) => {
                let Node::Text(text) = &self.nodes[text] else { return Err("encode: expected text".into()) };
                if !matches!(self.text(codec)?, "latin1" | "latin-1") {
                    return Err("encode: expected latin1".into());
                }
                let bytes = text.chars().map(|c| u8::try_from(c).map_err(|_| "encode: not latin1".to_owned()));
                Ok(Node::Bytes(bytes.collect::<Step<Vec<u8>>>()?.into()))
            }
            (Global::Bytes, []) => Ok(Node::Bytes((&[][..]).into())),
            (Global::OrderedDict, []) => Ok(Node::Dict(Vec::new())),
            _ => Err(format!("{function:?} called with {} arguments or not callable", arguments.len())),
        }
    }

    /// Sets the state of the array or dtype under the top of the stack.
    fn build(&mut self) -> Step {
        let state = self.pop()?;
        let target = self.top()?;
        let state = self.tuple(state)?;
        let built = match (&self.nodes[target], state) {
            (Node::Array(None), &[_version, shape, dtype, fortran, elements]) => {
                let (ty, big_endian) = self.dtype(dtype)?;
                let fits = match self.nodes[elements] {
                    Node::Bytes(_) => ty != NpyType::Object,
                    Node::List(_) => ty == NpyType::Object,
                    _ => false,
                };
                if !fits {
                    return Err(format!("array of {ty:?}: its elements are stored in an unknown way"));
                }
                let (shape, fortran_order) = (self.shape(shape)?, self.flag(fortran)?);
                Node::Array(Some(ArrayState { ty, big_endian, fortran_order, shape, elements }))
            }
            // (version, byte order, subarray, names, fields, size, alignment, flags, ..)
            (Node::Dtype { ty, .. }, &[_version, order, subarray, names, fields, ..]) => {
                if [subarray, names, fields].iter().any(|&id| !matches!(self.nodes[id], Node::None)) {
                    return Err("dtype: found a structured type, expected plain numbers".into());
                }
                let big_endian = match self.text(order)? {
                    "<" | "|" => false,
                    ">" => true,
                    other => return Err(format!("byte order: found {}, expected <, > or |", quoted(other))),
                };
                Node::Dtype { ty: *ty, big_endian }
            }
            _ => return Err("BUILD of something that is no new array or dtype".into()),
        };
        self.nodes[target] = built;
        Ok(())
    }
}

/// Text of a node, see [`Machine::text`].
pub(crate) fn text_of<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    match node {
        Node::Text(text) => Some(text),
        Node::Bytes(bytes) if bytes.is_ascii() => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

fn global(module: &str, name: &str) -> Step<Global> {
    Ok(match (module, name) {
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Global::Reconstruct,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::Scalar,
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Global::FromBuffer,
        ("numpy", "ndarray") => Global::NdArray,
        ("numpy", "dtype") => Global::Dtype,
        ("_codecs", "encode") => Global::Encode,
        ("builtins" | "__builtin__", "bytes") => Global::Bytes,
        ("collections", "OrderedDict") => Global::OrderedDict,
        _ => {
            let (module, name) = (quoted(module), quoted(name));
            return Err(format!("names {name} of module {module}, which is not needed for arrays; it was not called"));
        }
    })
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    match items.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a dictionary key without a value".into()),
    }
}

/// A numpy scalar as a plain number.
fn scalar<'a>(ty: NpyType, big_endian: bool, bytes: &[u8]) -> Step<Node<'a>> {
    if bytes.len() != ty.size() || bytes.is_empty() {
        return Err(format!("scalar: found {} bytes, expected {} for {ty:?}", bytes.len(), ty.size()));
    }
    Ok(match decode(ty, big_endian, bytes)? {
        NpyData::Bool(values) => Node::Bool(values[0]),
        other => Node::Float(other.to_f64()[0]),
    })
}
