//! The loaded library and the functions it exports beside the driver's.

use std::{
    ffi::{CStr, c_char},
    sync::OnceLock,
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::{SpecField, SpecLayout, Stats, libcuda};

/// Functions of the library, resolved once. The library is never unloaded.
pub(crate) struct Exports {
    library: Library,
    pub set_schedule: unsafe extern "C" fn(u32),
    pub schedule: unsafe extern "C" fn() -> u32,
    pub set_check: unsafe extern "C" fn(u32),
    pub check: unsafe extern "C" fn() -> u32,
    pub set_os_threads: unsafe extern "C" fn(u32),
    pub last_error: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    pub reset_error: unsafe extern "C" fn(),
    pub statistics: unsafe extern "C" fn(*mut Stats),
    pub kernel_launches: unsafe extern "C" fn(*const c_char) -> u64,
    pub kernel_count: unsafe extern "C" fn() -> usize,
    pub kernel_name: unsafe extern "C" fn(usize) -> *const c_char,
}

/// `EmuSpecField` of emu_abi.h.
#[repr(C)]
struct RawField {
    name: *const c_char,
    offset: u32,
    size: u32,
}

/// `EmuSpec` of emu_abi.h.
#[repr(C)]
struct RawSpec {
    name: *const c_char,
    size: u32,
    fields: u32,
    field: *const RawField,
}

/// The library, loaded on first use.
pub(crate) fn library() -> &'static Exports {
    static LIBRARY: OnceLock<Exports> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = libcuda();
        // SAFETY: our own library; its initialisers only register constants. Global, so that the driver's name
        // resolves to it from here on. Each symbol has the type declared in control.cpp.
        unsafe {
            let library = Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL)
                .unwrap_or_else(|e| panic!("cannot load the emulated driver {path}: {e}"));
            macro_rules! symbol {
                ($name:literal) => {
                    *library.get($name).unwrap_or_else(|e| panic!("{path}: {e}"))
                };
            }
            Exports {
                set_schedule: symbol!(b"emu_set_schedule"),
                schedule: symbol!(b"emu_schedule"),
                set_check: symbol!(b"emu_set_check"),
                check: symbol!(b"emu_check"),
                set_os_threads: symbol!(b"emu_set_os_threads"),
                last_error: symbol!(b"emu_last_error"),
                reset_error: symbol!(b"emu_reset_error"),
                statistics: symbol!(b"emu_statistics"),
                kernel_launches: symbol!(b"emu_kernel_launches"),
                kernel_count: symbol!(b"emu_kernel_count"),
                kernel_name: symbol!(b"emu_kernel_name"),
                library,
            }
        }
    })
}

impl Exports {
    /// The layout exported as `emu_spec_<name>`.
    pub(crate) fn spec(&self, name: &str) -> Option<SpecLayout> {
        // SAFETY: such a symbol is a constant `EmuSpec`, whose field array has `fields` entries with static names.
        unsafe {
            let raw: &RawSpec = &**self.library.get::<*const RawSpec>(format!("emu_spec_{name}").as_bytes()).ok()?;
            let text = |p| CStr::from_ptr(p).to_string_lossy().into_owned();
            debug_assert_eq!(text(raw.name), name);
            let fields = std::slice::from_raw_parts(raw.field, raw.fields as usize);
            let fields = fields
                .iter()
                .map(|f| SpecField { name: text(f.name), offset: f.offset as usize, size: f.size as usize })
                .collect();
            Some(SpecLayout { size: raw.size as usize, fields })
        }
    }
}
