//! Batches in the background: worker threads read and transform, the caller takes the batches in order.
//!
//! The images form one endless sequence: a permutation of the set for epoch 0, another for epoch 1, and so on, cut into
//! batches without regard to where an epoch ends. So nothing is dropped, any batch size works with any set, and the
//! state is one number: how many images were taken. What image number k of the sequence is, and how it is augmented,
//! depends on the seed and on k alone, not on the batch, the threads, or whether the run was resumed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use crate::data::random::{Draw, permutation};
use crate::data::set::DataSet;
use crate::error::{Error, Result};

/// Images of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Row-major values of shape [`Batch::shape`].
    pub images: Vec<f32>,
    /// Images, channels, height, width.
    pub shape: [usize; 4],
    /// Class of each image.
    pub labels: Vec<u32>,
    /// Index in the data set of each image.
    pub indices: Vec<u32>,
    /// Epoch of the first image.
    pub epoch: u64,
}

/// Where a loader is: enough to go on exactly there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Images taken so far.
    pub position: u64,
    /// Images in the data set, to notice another one.
    pub images: u64,
}

/// An endless sequence of shuffled, augmented batches, or one pass in order.
pub struct Loader {
    job: Arc<Job>,
    threads: usize,
    workers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// Position in the sequence after the last batch taken.
    position: u64,
}

/// What the workers make batches of.
#[derive(Clone)]
struct Job {
    set: Arc<DataSet>,
    shape: [usize; 3],
    batch: usize,
    seed: u64,
    /// One pass in order and without augmentation.
    in_order: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Room in the queue, or the end.
    room: Condvar,
    /// A finished batch.
    ready: Condvar,
    /// Permutations of the epochs in use.
    orders: Mutex<BTreeMap<u64, Arc<Vec<u32>>>>,
}

#[derive(Default)]
struct Queue {
    /// Start of the batch that the next free worker makes, and of the one that the caller wants next.
    next: u64,
    wanted: u64,
    finished: BTreeMap<u64, Result<Batch>>,
    stop: bool,
}

impl Loader {
    /// Endless batches of `batch` images, shuffled and augmented by `seed`, made by `threads` threads.
    ///
    /// # Errors
    /// [`Error::Usage`] for no images a batch or no threads; [`Error::Input`] if the first image cannot be read;
    /// [`Error::Runtime`] if the system refuses threads.
    pub fn new(set: Arc<DataSet>, batch: usize, seed: u64, threads: usize) -> Result<Self> {
        Self::start(set, batch, seed, threads, false)
    }

    /// One pass over the set in its order, without the random steps of its transform; the last batch may be smaller.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn in_order(set: Arc<DataSet>, batch: usize, threads: usize) -> Result<Self> {
        Self::start(set, batch, 0, threads, true)
    }

    fn start(set: Arc<DataSet>, batch: usize, seed: u64, threads: usize, in_order: bool) -> Result<Self> {
        if batch == 0 || threads == 0 {
            return Err(Error::usage(format!(
                "a loader of {threads} threads and {batch} images a batch: expected at least one"
            )));
        }
        let shape = set.shape()?;
        let job = Arc::new(Job { set, shape, batch, seed, in_order });
        let mut loader = Self { job, threads, workers: Vec::new(), shared: Arc::default(), position: 0 };
        loader.restart(0)?;
        Ok(loader)
    }

    /// Where the loader is after the batches taken so far.
    pub fn state(&self) -> LoaderState {
        LoaderState { seed: self.job.seed, position: self.position, images: self.job.set.len() as u64 }
    }

    /// Goes on from `state`, with its seed: the next batches are those that followed it.
    ///
    /// # Errors
    /// [`Error::Usage`] for the state of a data set of another size.
    pub fn resume(&mut self, state: LoaderState) -> Result<()> {
        let images = self.job.set.len() as u64;
        if state.images != images {
            return Err(Error::usage(format!(
                "{}: found {images} images, expected {} as when the run was saved",
                self.job.set.path().display(),
                state.images
            )));
        }
        self.stop();
        self.job = Arc::new(Job { seed: state.seed, ..Job::clone(&self.job) });
        self.restart(state.position)
    }

    /// Takes `batch` images at a time from here on. The sequence of images stays the same.
    ///
    /// # Errors
    /// [`Error::Usage`] for none.
    pub fn set_batch(&mut self, batch: usize) -> Result<()> {
        if batch == 0 {
            return Err(Error::usage("a batch of 0 images: expected at least one"));
        }
        self.stop();
        self.job = Arc::new(Job { batch, ..Job::clone(&self.job) });
        self.restart(self.position)
    }

    /// Channels, height and width of the images.
    pub fn image_shape(&self) -> [usize; 3] {
        self.job.shape
    }

    /// The data set.
    pub fn set(&self) -> &DataSet {
        &self.job.set
    }

    fn restart(&mut self, position: u64) -> Result<()> {
        self.position = position;
        self.shared = Arc::default();
        {
            let mut queue = lock(&self.shared.queue);
            (queue.next, queue.wanted) = (position, position);
        }
        // Two batches ahead of a worker each: one that is being made and one that waits.
        let ahead = (2 * self.threads * self.job.batch) as u64;
        for i in 0..self.threads {
            let (job, shared) = (self.job.clone(), self.shared.clone());
            let spawned =
                std::thread::Builder::new().name(format!("data-{i}")).spawn(move || work(&job, &shared, ahead));
            self.workers.push(spawned.map_err(|e| Error::Runtime(format!("cannot start a thread: {e}")))?);
        }
        Ok(())
    }

    fn stop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // Panics of a worker were turned into errors already.
            let _ = worker.join();
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    /// The next batch; `None` only at the end of a pass in order. An image that cannot be read, or is of another size
    /// than the first, is an [`Error::Input`] in the place of its batch.
    fn next(&mut self) -> Option<Self::Item> {
        let count = self.job.count_at(self.position);
        if count == 0 {
            return None;
        }
        let mut queue = lock(&self.shared.queue);
        let batch = loop {
            if let Some(batch) = queue.finished.remove(&self.position) {
                break batch;
            }
            queue = self.shared.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        self.position += count as u64;
        queue.wanted = self.position;
        drop(queue);
        self.shared.room.notify_all();
        Some(batch)
    }
}

/// A worker: claims the next batch as long as there is room for it, makes it, hands it over.
fn work(job: &Job, shared: &Shared, ahead: u64) {
    loop {
        let start = {
            let mut queue = lock(&shared.queue);
            while !queue.stop && queue.next >= queue.wanted + ahead {
                queue = shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let count = job.count_at(queue.next);
            if queue.stop || count == 0 {
                return;
            }
            let start = queue.next;
            queue.next += count as u64;
            start
        };
        let made = catch_unwind(AssertUnwindSafe(|| job.make(start, shared)));
        let batch = made.unwrap_or_else(|_| Err(Error::Runtime("a loader thread panicked".into())));
        lock(&shared.queue).finished.insert(start, batch);
        shared.ready.notify_all();
    }
}

impl Job {
    /// Images in the batch that starts at `position`.
    fn count_at(&self, position: u64) -> usize {
        match self.in_order {
            true => (self.set.len() as u64).saturating_sub(position).min(self.batch as u64) as usize,
            false => self.batch,
        }
    }

    fn make(&self, start: u64, shared: &Shared) -> Result<Batch> {
        let (count, images) = (self.count_at(start), self.set.len() as u64);
        let [c, h, w] = self.shape;
        let mut batch = Batch {
            images: Vec::with_capacity(count * c * h * w),
            shape: [count, c, h, w],
            labels: Vec::with_capacity(count),
            indices: Vec::with_capacity(count),
            epoch: start / images,
        };
        for position in start..start + count as u64 {
            let (epoch, place) = (position / images, (position % images) as usize);
            let index = if self.in_order { place as u32 } else { shared.order(self, epoch)[place] };
            let draw = (!self.in_order).then(|| Draw::new(self.seed, epoch, index));
            let image = self.set.take(index as usize, draw)?;
            if image.shape != self.shape {
                let ((path, _), (first, _)) = (self.set.place(index as usize), self.set.place(0));
                return Err(Error::input(
                    path,
                    format!(
                        "found an image of {:?} (channels, height, width), expected {:?} as in {}; the transform \"resize\" makes them equal",
                        image.shape,
                        self.shape,
                        first.display()
                    ),
                ));
            }
            batch.images.extend_from_slice(&image.pixels);
            batch.labels.push(self.set.labels()[index as usize]);
            batch.indices.push(index);
        }
        Ok(batch)
    }
}

impl Shared {
    /// The order of an epoch, computed once.
    fn order(&self, job: &Job, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = lock(&self.orders);
        if let Some(order) = orders.get(&epoch) {
            return order.clone();
        }
        let order = Arc::new(permutation(job.seed, epoch, job.set.len()));
        orders.insert(epoch, order.clone());
        // Workers are spread over few epochs; the oldest ones are done with.
        while orders.len() > 4 {
            orders.pop_first();
        }
        order
    }
}

/// A lock that a panicking thread held is used all the same: what it guards is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
