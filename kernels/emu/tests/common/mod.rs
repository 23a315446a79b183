//! What the tests of the emulator share: a context, launches by name, and faults on purpose.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    ffi::c_void,
    sync::{Arc, Mutex, MutexGuard},
};

use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};

/// Context, stream and all kernels of the library.
pub struct Gpu {
    pub ctx: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub module: sys::CUmodule,
}

// SAFETY: a module handle may be used from any thread.
unsafe impl Sync for Gpu {}

impl Gpu {
    pub fn new() -> Self {
        Self::for_arch("80")
    }

    /// With the kernels as if compiled for `arch`.
    pub fn for_arch(arch: &str) -> Self {
        arclet_emu::load();
        let ctx = CudaContext::new(0).expect("context");
        // SAFETY: no allocation was made yet, and one stream is used.
        unsafe { ctx.disable_event_tracking() };
        let stream = ctx.new_stream().expect("stream");
        let module = load_manifest(&arclet_emu::manifest(arch)).expect("module");
        Self { ctx, stream, module }
    }

    /// The handle of a kernel.
    pub fn function(&self, name: &str) -> sys::CUfunction {
        get_function(self.module, name).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Launches with parameters given as 64-bit slots: pointers, and smaller values by bit pattern.
    pub fn launch(&self, name: &str, shape: Shape, args: &[u64]) -> Result<(), DriverError> {
        self.launch_with(name, shape, Extra::default(), args)
    }

    /// The same with launch attributes.
    pub fn launch_with(&self, name: &str, shape: Shape, extra: Extra, args: &[u64]) -> Result<(), DriverError> {
        let f = self.function(name);
        let Shape { grid: g, block: b, smem } = shape;
        let mut slots: Vec<*mut c_void> = args.iter().map(|a| a as *const u64 as *mut c_void).collect();
        let mut attributes = extra.attributes();
        let config = sys::CUlaunchConfig {
            gridDimX: g.0,
            gridDimY: g.1,
            gridDimZ: g.2,
            blockDimX: b.0,
            blockDimY: b.1,
            blockDimZ: b.2,
            sharedMemBytes: smem,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the slots outlive the call; each holds a value at least as large as the kernel's parameter.
        unsafe {
            if smem > 48 << 10 {
                let opt_in = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                sys::cuFuncSetAttribute(f, opt_in, smem as i32).result()?;
            }
            sys::cuLaunchKernelEx(&config, f, slots.as_mut_ptr(), std::ptr::null_mut()).result()
        }
    }

    /// Launches and waits: the kernel's fault, if it has one, as the emulator words it.
    pub fn run(&self, name: &str, shape: Shape, args: &[u64]) -> Result<(), String> {
        self.run_with(name, shape, Extra::default(), args)
    }

    /// The same with launch attributes.
    pub fn run_with(&self, name: &str, shape: Shape, extra: Extra, args: &[u64]) -> Result<(), String> {
        self.launch_with(name, shape, extra, args).map_err(|_| arclet_emu::last_error().unwrap_or_default())?;
        self.finish()
    }

    /// Waits for the stream: the fault of a kernel, cleared.
    pub fn finish(&self) -> Result<(), String> {
        self.stream.synchronize().map_err(|e| {
            assert_eq!(e.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
            let message = arclet_emu::last_error().unwrap_or_default();
            arclet_emu::reset_error();
            message
        })
    }
}

/// Launch attributes.
#[derive(Clone, Copy)]
pub struct Extra {
    pub cluster: [u32; 3],
    pub dependent: bool,
}

impl Default for Extra {
    fn default() -> Self {
        Self { cluster: [1; 3], dependent: false }
    }
}

impl Extra {
    fn attributes(self) -> Vec<sys::CUlaunchAttribute> {
        let mut attributes = Vec::new();
        let mut add = |id, set: &dyn Fn(&mut sys::CUlaunchAttributeValue)| {
            // SAFETY: a union of plain values.
            let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
            attribute.id = id;
            set(&mut attribute.value);
            attributes.push(attribute);
        };
        use sys::CUlaunchAttributeID as Id;
        let [x, y, z] = self.cluster;
        if self.cluster != [1; 3] {
            add(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &|v| {
                v.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            });
        }
        if self.dependent {
            let id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            add(id, &|v| v.programmaticStreamSerializationAllowed = 1);
        }
        attributes
    }
}

/// Loads a manifest (ending with a zero byte) as a module.
pub fn load_manifest(manifest: &[u8]) -> Result<sys::CUmodule, DriverError> {
    assert_eq!(manifest.last(), Some(&0));
    let mut m = std::ptr::null_mut();
    // SAFETY: a zero-terminated image.
    unsafe { sys::cuModuleLoadData(&mut m, manifest.as_ptr().cast()) }.result()?;
    Ok(m)
}

/// Looks a kernel up.
pub fn get_function(module: sys::CUmodule, name: &str) -> Result<sys::CUfunction, DriverError> {
    let name = std::ffi::CString::new(name).expect("no zero byte");
    let mut f = std::ptr::null_mut();
    // SAFETY: a module handle, which the driver checks, and a zero-terminated name.
    unsafe { sys::cuModuleGetFunction(&mut f, module, name.as_ptr()) }.result()?;
    Ok(f)
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: (u32, u32, u32),
    pub block: (u32, u32, u32),
    pub smem: u32,
}

/// One-dimensional launch.
pub fn shape(blocks: u32, threads: u32, smem: u32) -> Shape {
    Shape { grid: (blocks, 1, 1), block: (threads, 1, 1), smem }
}

/// Device address of a buffer.
pub fn ptr<T>(s: &cudarc::driver::CudaSlice<T>, stream: &CudaStream) -> u64 {
    cudarc::driver::DevicePtr::device_ptr(s, stream).0
}

/// Faults poison the one context of the process, so tests that make some take turns.
pub fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(|e| e.into_inner())
}

/// Runs the named test again in a child process with this environment, and fails if it fails there. False in the
/// child itself, which then goes on with the test; true in the parent, which is done.
pub fn ran_in_child(test: &str, env: &[(&str, &str)]) -> bool {
    const MARK: &str = "ARCLET_EMU_TEST_CHILD";
    if std::env::var(MARK).is_ok_and(|v| v == test) {
        return false;
    }
    let exe = std::env::current_exe().expect("this test's executable");
    let mut child = std::process::Command::new(exe);
    child.args([test, "--exact", "--nocapture"]).env(MARK, test).envs(env.iter().copied());
    let output = child.output().expect("run the child");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{test} in a child process: {}\n{text}",
        output.status
    );
    true
}
