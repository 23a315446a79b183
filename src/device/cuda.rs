//! One NVIDIA GPU through cudarc: a stream, the loaded kernel modules, launches, and graph capture.
//!
//! Everything is enqueued on one non-default stream, so operations run in program order and device memory needs no
//! events. The driver library is loaded at run time; without it [`Cuda::new`] is an error, never a panic.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, ThreadId};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, sys,
};
use cudarc::nvrtc::Ptx;

use super::images::{ImageTarget, KernelImages};
pub(crate) use super::launch::{Launch, TensorMap};
use super::trace::{Phase, Recorder};
use crate::error::{Error, Result};

/// Oldest compute capability that the kernels run on (cp.async, bf16 tensor cores).
pub const MIN_COMPUTE_CAPABILITY: (i32, i32) = (8, 0);
/// Oldest CUDA driver API version that the calls used here exist in (`cuLaunchKernelEx`).
pub const MIN_DRIVER_VERSION: i32 = 12_000;

/// Oldest CUDA driver API version that records dependent launches into graphs.
const MIN_DRIVER_DEPENDENT: i32 = 12_030;

/// The module that is loaded when a GPU is opened: every model needs its kernels.
pub const PROBE_MODULE: &str = "linear";
/// Most blocks of a grid in y and in z, on every GPU.
const MAX_GRID_YZ: u32 = 65_535;

/// A GPU with its stream and kernels. Cloning shares them, also with other threads: what they enqueue runs in one order,
/// and while one thread records a graph the others wait.
#[derive(Clone)]
pub struct Cuda {
    inner: Arc<Inner>,
}

struct Inner {
    ordinal: usize,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    images: KernelImages,
    driver_version: i32,
    compute_capability: (i32, i32),
    multiprocessors: usize,
    /// Whether kernels are launched dependent: each may start while the one in front of it still runs, and waits for it
    /// by itself.
    dependent: AtomicBool,
    /// Whether products may run on the kernels for Hopper's tensor cores.
    hopper_tiles: AtomicBool,
    /// Held for writing while a thread records a graph, for reading by every other use of the stream.
    stream_use: RwLock<()>,
    /// The thread that records.
    recorder: Mutex<Option<ThreadId>>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, Arc<Function>>>,
    usage: Usage,
    trace: Recorder,
    /// Launches are noted and not run.
    dry: bool,
}

/// Bytes of the buffers that are alive, and the most there ever were at a time.
#[derive(Default)]
struct Usage {
    now: AtomicUsize,
    peak: AtomicUsize,
}

struct Function {
    function: CudaFunction,
    /// Dynamic shared memory that the driver was told to allow.
    shared_limit: Mutex<u32>,
}

/// Untyped device memory of one tensor.
pub struct DeviceBuffer {
    /// `None` only while it is dropped.
    slice: Option<CudaSlice<u8>>,
    inner: Arc<Inner>,
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if let Some(slice) = &self.slice {
            self.inner.usage.now.fetch_sub(slice.len(), Ordering::Relaxed);
        }
        // Freed on the stream, so a graph that another thread records would take the free in. Without a context, which
        // only a broken driver takes away, nothing can be freed or recorded.
        let _use = self.inner.enter();
        drop(self.slice.take());
    }
}

impl DeviceBuffer {
    fn slice(&self) -> &CudaSlice<u8> {
        self.slice.as_ref().expect("a buffer has its memory until it is dropped")
    }

    /// Device address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        let (pointer, _sync) = self.slice().device_ptr(self.slice().stream());
        pointer
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.slice().len()
    }

    /// True for a buffer of no bytes.
    pub fn is_empty(&self) -> bool {
        self.slice().len() == 0
    }
}

/// A recorded CUDA graph, ready to launch on the device's stream.
pub struct CudaGraph {
    graph: cudarc::driver::CudaGraph,
    inner: Arc<Inner>,
}

// SAFETY: the driver lets a graph be used from any thread, one at a time, and `CudaGraph` is not `Sync`.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Enqueues the graph.
    pub fn launch(&self) -> Result<()> {
        let _use = self.inner.enter()?;
        self.graph.launch().map_err(driver_error("graph launch"))
    }
}

/// A point in the order of the device's work whose time the GPU itself notes.
pub struct Event {
    event: CudaEvent,
}

/// What the driver offers, asked without creating a context.
pub struct Probe {
    /// CUDA version of the driver, as 1000 major + 10 minor.
    pub driver_version: i32,
    /// Name, compute capability and memory of each device.
    pub devices: Vec<DeviceInfo>,
}

/// One GPU as the driver describes it.
pub struct DeviceInfo {
    /// Marketing name.
    pub name: String,
    /// Compute capability (major, minor).
    pub compute_capability: (i32, i32),
    /// Memory in bytes.
    pub memory: usize,
}

/// Asks the driver what there is.
///
/// # Errors
/// [`Error::Device`] with one line that says what is missing: no driver library, a driver that is too old, or no GPU.
pub fn probe() -> Result<Probe> {
    // SAFETY: only tries to open the shared library; its initialisers are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device("no NVIDIA driver: libcuda.so was not found"));
    }
    let fail = |what| driver_error(what);
    cudarc::driver::result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Error::device("the NVIDIA driver reports no GPU"),
        _ => fail("driver initialisation")(e),
    })?;
    let mut driver_version = 0;
    // SAFETY: the pointer is to a live i32.
    unsafe { sys::cuDriverGetVersion(&mut driver_version) }.result().map_err(fail("driver version"))?;
    let mut devices = Vec::new();
    let count = cudarc::driver::result::device::get_count().map_err(fail("device count"))?;
    for ordinal in 0..count {
        use cudarc::driver::result::device;
        use sys::CUdevice_attribute_enum as Attribute;
        let dev = device::get(ordinal).map_err(fail("device"))?;
        // SAFETY: `dev` was returned by the driver just now.
        let (major, minor, memory) = unsafe {
            (
                device::get_attribute(dev, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                device::get_attribute(dev, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
                device::total_mem(dev),
            )
        };
        devices.push(DeviceInfo {
            name: device::get_name(dev).map_err(fail("device name"))?,
            compute_capability: (major.map_err(fail("attribute"))?, minor.map_err(fail("attribute"))?),
            memory: memory.map_err(fail("device memory"))?,
        });
    }
    if devices.is_empty() {
        return Err(Error::device("the NVIDIA driver reports no GPU"));
    }
    Ok(Probe { driver_version, devices })
}

impl Inner {
    /// Makes the GPU this thread's own and waits for the stream; every call of the driver comes after it.
    fn enter(&self) -> Result<Option<RwLockReadGuard<'_, ()>>> {
        self.context.bind_to_thread().map_err(driver_error("context"))?;
        Ok(self.use_stream())
    }

    /// Waits while another thread records; the recording thread itself passes.
    fn use_stream(&self) -> Option<RwLockReadGuard<'_, ()>> {
        // Poisoned locks are used on: they guard no data.
        let recorder = *self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        if recorder == Some(thread::current().id()) {
            return None;
        }
        Some(self.stream_use.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `12.4` from 12040.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

impl Cuda {
    /// Opens GPU `ordinal` with the kernels in `images`.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no driver, it is older than [`MIN_DRIVER_VERSION`], there is no such GPU, it is
    /// older than [`MIN_COMPUTE_CAPABILITY`], `images` holds no kernels for it, or the driver cannot load them (one that
    /// is older than the nvcc that compiled them).
    pub fn new(ordinal: usize, images: KernelImages) -> Result<Self> {
        let cuda = Self::open(ordinal, images, false)?;
        cuda.module(PROBE_MODULE)?;
        Ok(cuda)
    }

    /// Opens GPU `ordinal` to see what would be launched on it: memory is real, but kernels are noted by
    /// [`Self::trace`] and never loaded or run, so results stay what buffers held.
    ///
    /// # Errors
    /// As [`Self::new`], except that no kernels are needed.
    pub fn dry(ordinal: usize) -> Result<Self> {
        Self::open(ordinal, KernelImages::default(), true)
    }

    fn open(ordinal: usize, images: KernelImages, dry: bool) -> Result<Self> {
        let probe = probe()?;
        if probe.driver_version < MIN_DRIVER_VERSION {
            return Err(Error::device(format!(
                "the NVIDIA driver supports CUDA {}; 12.0 or newer is needed",
                version(probe.driver_version)
            )));
        }
        let info = probe.devices.get(ordinal).ok_or_else(|| {
            Error::device(format!("no GPU number {ordinal}: the driver reports {}", probe.devices.len()))
        })?;
        if info.compute_capability < MIN_COMPUTE_CAPABILITY {
            let (major, minor) = info.compute_capability;
            return Err(Error::device(format!(
                "{} has compute capability {major}.{minor}; the kernels need 8.0 or newer",
                info.name
            )));
        }
        if images.is_empty() && !dry {
            return Err(Error::device(
                "this binary has no GPU kernels: install nvcc with `tools/setup-cuda` and build again",
            ));
        }
        let context = CudaContext::new(ordinal).map_err(driver_error("context"))?;
        // SAFETY: every use of device memory is on the one stream created below, in program order.
        unsafe { context.disable_event_tracking() };
        let multiprocessors = context
            .attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(driver_error("attribute"))? as usize;
        let stream = context.new_stream().map_err(driver_error("stream"))?;
        let inner = Inner {
            ordinal,
            stream,
            images,
            driver_version: probe.driver_version,
            compute_capability: info.compute_capability,
            multiprocessors,
            dependent: AtomicBool::new(false),
            hopper_tiles: AtomicBool::new(true),
            stream_use: RwLock::default(),
            recorder: Mutex::default(),
            context,
            modules: Mutex::default(),
            functions: Mutex::default(),
            usage: Usage::default(),
            trace: Recorder::default(),
            dry,
        };
        let cuda = Self { inner: Arc::new(inner) };
        cuda.set_dependent_launch(true);
        Ok(cuda)
    }

    /// Whether the kernels are compiled for Hopper: with its tensor cores, clusters and dependent launches.
    pub fn hopper(&self) -> bool {
        let (major, minor) = self.inner.compute_capability;
        if self.inner.dry {
            return (major, minor) == (9, 0);
        }
        let image = self.inner.images.select(PROBE_MODULE, (major as u32, minor as u32));
        image.is_ok_and(|image| match image.target {
            ImageTarget::Manifest => (major, minor) == (9, 0),
            target => target == ImageTarget::HOPPER,
        })
    }

    /// Lets the start of a kernel overlap the end of the one in front of it (programmatic dependent launch), from now on
    /// and in graphs recorded from now on. On from the beginning where the kernels can (Hopper), without effect elsewhere;
    /// no output depends on it.
    pub fn set_dependent_launch(&self, on: bool) {
        let possible = self.hopper() && self.inner.driver_version >= MIN_DRIVER_DEPENDENT;
        self.inner.dependent.store(on && possible, Ordering::Relaxed);
    }

    /// What [`Self::set_dependent_launch`] has come to.
    pub fn dependent_launch(&self) -> bool {
        self.inner.dependent.load(Ordering::Relaxed)
    }

    /// Lets products run on the kernels for Hopper's tensor cores where the GPU has them, as from the beginning, or makes
    /// them take those of `sm_80`. For what is made from now on: buffers of a model fit the kernels they were made for.
    /// The last digits of a product depend on it.
    pub fn set_hopper_tiles(&self, on: bool) {
        self.inner.hopper_tiles.store(on, Ordering::Relaxed);
    }

    /// Whether products run on the kernels for Hopper's tensor cores.
    pub fn hopper_tiles(&self) -> bool {
        self.hopper() && self.inner.hopper_tiles.load(Ordering::Relaxed)
    }

    /// Whether it notes launches and runs none, as [`Self::dry`] makes it.
    pub fn is_dry(&self) -> bool {
        self.inner.dry
    }

    /// `cuda:0`.
    pub fn name(&self) -> String {
        format!("cuda:{}", self.inner.ordinal)
    }

    /// GPU model as the driver calls it.
    pub fn model(&self) -> String {
        self.inner.context.name().unwrap_or_else(|_| "unknown GPU".into())
    }

    /// GPU model and compute capability.
    pub fn description(&self) -> String {
        format!("{} ({})", self.model(), self.arch())
    }

    /// The architecture as nvcc names it: `sm_90`.
    pub fn arch(&self) -> String {
        let (major, minor) = self.inner.compute_capability;
        format!("sm_{major}{minor}")
    }

    /// Number of multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.inner.multiprocessors
    }

    /// Allocates `bytes` zeroed bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the bytes that are free.
    pub fn alloc(&self, bytes: usize) -> Result<DeviceBuffer> {
        let _use = self.inner.enter()?;
        // The driver refuses an allocation of nothing.
        match self.inner.stream.alloc_zeros::<u8>(bytes.max(1)) {
            Ok(slice) => {
                let usage = &self.inner.usage;
                let now = usage.now.fetch_add(slice.len(), Ordering::Relaxed) + slice.len();
                usage.peak.fetch_max(now, Ordering::Relaxed);
                Ok(DeviceBuffer { slice: Some(slice), inner: self.inner.clone() })
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, _) = self.inner.context.mem_get_info().unwrap_or((0, 0));
                Err(Error::OutOfMemory { device: self.name(), asked: bytes, free })
            }
            Err(e) => Err(driver_error("allocation")(e)),
        }
    }

    /// Copies host bytes to the start of `to` and waits for the copy.
    pub fn upload(&self, from: &[u8], to: &mut DeviceBuffer) -> Result<()> {
        let _use = self.inner.enter()?;
        let to = to.slice.as_mut().expect("a buffer has its memory until it is dropped");
        self.inner.stream.memcpy_htod(from, to).map_err(driver_error("copy to the device"))?;
        self.wait()
    }

    /// Copies the first `to.len()` bytes of `from` to the host and waits for the copy.
    pub fn download(&self, from: &DeviceBuffer, to: &mut [u8]) -> Result<()> {
        let _use = self.inner.enter()?;
        let view = from.slice().slice(..to.len());
        self.inner.stream.memcpy_dtoh(&view, to).map_err(driver_error("copy from the device"))?;
        self.wait()
    }

    /// Waits for the stream.
    pub fn synchronize(&self) -> Result<()> {
        let _use = self.inner.enter()?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        self.inner.stream.synchronize().map_err(driver_error("kernel"))
    }

    /// Device memory as (free, total) bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.inner.context.mem_get_info().map_err(driver_error("memory information"))
    }

    /// Bytes of the buffers that [`Self::alloc`] gave and that are alive: (now, most at a time so far). Counts what
    /// was asked for, not the driver's own memory for its context, code and graphs.
    pub fn allocated(&self) -> (usize, usize) {
        let usage = &self.inner.usage;
        (usage.now.load(Ordering::Relaxed), usage.peak.load(Ordering::Relaxed))
    }

    /// The GPU's identity as `nvidia-smi` writes it, `GPU-` and sixteen bytes in hexadecimal; `None` if the driver does
    /// not tell.
    pub fn uuid(&self) -> Option<String> {
        let bytes = self.inner.context.uuid().ok()?.bytes;
        let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|&b| format!("{:02x}", b as u8)).collect();
        let groups: [String; 5] = [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)];
        Some(format!("GPU-{}", groups.join("-")))
    }

    /// A new event, to be recorded.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn event(&self) -> Result<Event> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        self.inner.context.new_event(Some(flags)).map(|event| Event { event }).map_err(driver_error("event"))
    }

    /// Puts `event` behind everything enqueued so far; its time is when the GPU gets there.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn record(&self, event: &Event) -> Result<()> {
        let _use = self.inner.enter()?;
        event.event.record(&self.inner.stream).map_err(driver_error("event record"))
    }

    /// Waits for both events and returns the milliseconds of the GPU's clock from `start` to `end`.
    ///
    /// # Errors
    /// [`Error::Device`] for an event that was never recorded, and errors of kernels that ran before the events.
    pub fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f64> {
        start.event.elapsed_ms(&end.event).map(f64::from).map_err(driver_error("event"))
    }

    /// Enqueues one kernel. Addresses and spec are taken as they come: the operations check what they point to.
    pub(crate) fn launch(&self, launch: &Launch) -> Result<()> {
        let [_, y, z] = launch.grid;
        if y > MAX_GRID_YZ || z > MAX_GRID_YZ {
            return Err(Error::Runtime(format!(
                "launch of {}: a grid of {y} by {z} blocks in y and z, at most {MAX_GRID_YZ} each expected; take a \
                 smaller batch",
                launch.kernel
            )));
        }
        let _use = self.inner.enter()?;
        self.inner.trace.note(launch);
        if self.inner.dry {
            return Ok(());
        }
        let function = self.function(launch)?;
        let mut params = launch.params();
        let mut attributes = launch.attributes(self.dependent_launch());
        let [grid_x, grid_y, grid_z] = launch.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.inner.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: `params` holds one pointer per kernel parameter, each to a live value of the parameter's size (the
        // ops state the kernel's signature; a test compares every spec struct with the C side).
        let status = unsafe {
            sys::cuLaunchKernelEx(&config, function.function.cu_function(), params.as_mut_ptr(), std::ptr::null_mut())
        };
        status.result().map_err(|e| Error::device(format!("launch of {}: {}", launch.kernel, describe(e))))
    }

    /// Runs `work` and returns what it launched, in order: not what graphs launch, only kernels one by one.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Device`] inside another trace of the same GPU.
    pub fn trace(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Phase>> {
        self.inner.trace.start()?;
        let worked = work();
        let phases = self.inner.trace.stop();
        worked.map(|()| phases)
    }

    /// Enqueues a phase of a trace again, on the buffers it was traced on, which have to be alive still.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn relaunch(&self, phase: &Phase) -> Result<()> {
        self.launch(&phase.as_launch())
    }

    /// Records what `work` launches into a graph; see [`super::Device::capture`].
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        let _recording = self.begin_recording()?;
        let stream = &self.inner.stream;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(driver_error("begin capture"))?;
        let worked = work();
        // The capture is ended even when `work` failed, so that the stream is usable again.
        let ended = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        worked?;
        let graph = ended.map_err(driver_error("end capture"))?;
        let inner = self.inner.clone();
        graph.map(|graph| CudaGraph { graph, inner }).ok_or_else(|| Error::device("capture recorded no work"))
    }

    /// Keeps other threads off the stream until the value is dropped.
    fn begin_recording(&self) -> Result<impl Drop + '_> {
        struct Recording<'a> {
            inner: &'a Inner,
            _alone: RwLockWriteGuard<'a, ()>,
        }
        impl Drop for Recording<'_> {
            fn drop(&mut self) {
                *self.inner.recorder.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
        let (me, recorder) = (Some(thread::current().id()), &self.inner.recorder);
        if *recorder.lock().unwrap_or_else(PoisonError::into_inner) == me {
            return Err(Error::device("a graph cannot be recorded inside another"));
        }
        let alone = self.inner.stream_use.write().unwrap_or_else(PoisonError::into_inner);
        *recorder.lock().unwrap_or_else(PoisonError::into_inner) = me;
        Ok(Recording { inner: &self.inner, _alone: alone })
    }

    fn function(&self, launch: &Launch) -> Result<Arc<Function>> {
        let mut functions = self.inner.functions.lock().expect("no thread panics while it holds this lock");
        let function = match functions.get(&launch.kernel) {
            Some(function) => function.clone(),
            None => {
                let function = self.module(launch.module)?.load_function(&launch.kernel).map_err(|e| {
                    Error::device(format!(
                        "kernel {} is not in module {}: {}",
                        launch.kernel,
                        launch.module,
                        describe(e)
                    ))
                })?;
                let function = Arc::new(Function { function, shared_limit: Mutex::new(48 << 10) });
                functions.insert(launch.kernel.clone(), function.clone());
                function
            }
        };
        let mut limit = function.shared_limit.lock().expect("no thread panics while it holds this lock");
        if launch.shared_bytes > *limit {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.function.set_attribute(attribute, launch.shared_bytes as i32).map_err(|e| {
                Error::device(format!(
                    "{} needs {} bytes of shared memory per block, more than this GPU has: {}",
                    launch.kernel,
                    launch.shared_bytes,
                    describe(e)
                ))
            })?;
            *limit = launch.shared_bytes;
        }
        drop(limit);
        Ok(function)
    }

    fn module(&self, name: &'static str) -> Result<Arc<CudaModule>> {
        let mut modules = self.inner.modules.lock().expect("no thread panics while it holds this lock");
        if let Some(module) = modules.get(name) {
            return Ok(module.clone());
        }
        let (major, minor) = self.inner.compute_capability;
        let image = self.inner.images.select(name, (major as u32, minor as u32))?;
        let module = self.inner.context.load_module(Ptx::from_binary(image.bytes()?)).map_err(|e| {
            let nvcc = self.inner.images.nvcc().map_or(String::new(), |v| format!(", compiled by nvcc {v}"));
            Error::device(format!(
                "the NVIDIA driver, which supports CUDA {}, cannot load the kernels of {name} ({}{nvcc}): {}; a \
                     newer driver or an nvcc that is no newer than the driver helps",
                version(self.inner.driver_version),
                image.target,
                describe(e)
            ))
        })?;
        modules.insert(name, module.clone());
        Ok(module)
    }
}

fn describe(error: DriverError) -> String {
    let name = error.error_name().ok().and_then(|n| n.to_str().ok()).unwrap_or("unknown driver error").to_owned();
    match error.error_string().ok().and_then(|s| s.to_str().ok()) {
        Some(text) => format!("{name} ({text})"),
        None => name,
    }
}

fn driver_error(what: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| Error::device(format!("{what} failed: {}", describe(e)))
}
