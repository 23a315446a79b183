//! Sets of images in folders, as a trainer reads them.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::iter::{ParallelBridge, ParallelIterator};

use super::population::{Class, Split};
use super::simulator::{Simulated, Simulator};
use crate::error::{Error, Result};
use crate::io::{AtomicFile, write_npy_f32};

/// First line of `params.csv`. Numbers that do not apply to a class are 0.
const HEADER: &str = "file,class,split,index,z_lens,z_source,halo_mass_Msun,halo_theta_E_arcsec,halo_e1,halo_e2,\
    shear_gamma1,shear_gamma2,source_x_arcsec,source_y_arcsec,source_R_arcsec,source_n,source_e1,source_e2,\
    source_amplitude_counts_per_s_arcsec2,substructure_points,substructure_mass_Msun,axion_mass_eV,\
    vortex_half_length_arcsec,vortex_angle_rad,psf_fwhm_arcsec,sky_rms_counts_per_s,exposure_s,\
    count_min,count_max";

/// One image to be simulated.
type Job = (Split, u64, Class);

/// How many images of which classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Classes, each once.
    pub classes: Vec<Class>,
    /// Images of a class to train on.
    pub train: u64,
    /// Images of a class that are held back.
    pub val: u64,
}

impl Plan {
    /// Number of all images.
    pub fn images(&self) -> u64 {
        self.classes.len() as u64 * (self.train + self.val)
    }

    /// Every image: to train on first, classes in turn.
    fn all(&self) -> impl Iterator<Item = Job> {
        let parts = [(Split::Train, self.train), (Split::Val, self.val)];
        parts.into_iter().flat_map(move |(split, n)| {
            (0..n).flat_map(move |index| self.classes.iter().map(move |&class| (split, index, class)))
        })
    }
}

/// Threads that write. They wait for the disk nearly all of the time, and a file system confirms many files at once.
const WRITERS: usize = 16;

/// Writes `out/train/CLASS/N.npy` and `out/val/CLASS/N.npy` (size x size, f32 in 0..1; N = index + 1) and
/// `out/params.csv` with one row for each. Simulates on the threads of the current rayon pool. `finished` is called after
/// each written image, from any thread, and may end the run: images that are finished by then keep their files and rows.
/// Returns their number.
///
/// # Errors
/// [`Error::Output`]; then, too, what is finished stays, with its rows if they can be written.
pub fn write_set(
    simulator: &Simulator,
    plan: &Plan,
    out: &Path,
    finished: &(dyn Fn() -> ControlFlow<()> + Sync),
) -> Result<u64> {
    for split in Split::ALL {
        for class in &plan.classes {
            let folder = out.join(split.name()).join(class.name());
            std::fs::create_dir_all(&folder).map_err(|e| Error::output(&folder, e))?;
        }
    }
    // Before the first image, so that it can be written at all.
    let mut table = AtomicFile::create(out.join("params.csv"))?;
    let ended = AtomicBool::new(false);
    let rows = Mutex::new(Vec::new());
    let failure = Mutex::new(None);
    let write = |number: usize, job: Job, simulated: &Simulated| {
        let file = file_name(job);
        match write_npy_f32(out.join(&file), &[simulator.size(); 2], &simulated.image) {
            Ok(()) => {
                locked(&rows).push((number, row(simulator, &file, job, simulated)));
                if finished().is_break() {
                    ended.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => {
                ended.store(true, Ordering::Relaxed);
                locked(&failure).get_or_insert(error);
            }
        }
    };
    let images = plan.all().enumerate().take_while(|_| !ended.load(Ordering::Relaxed));
    let (send, receive) = sync_channel::<(usize, Job, Simulated)>(WRITERS);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                loop {
                    // Locked until there is something, and not while it is written.
                    let next = locked(&receive).recv();
                    let Ok((number, job, simulated)) = next else { break };
                    write(number, job, &simulated);
                }
            });
        }
        images.par_bridge().for_each_with(send, |send, (number, job)| {
            let (split, index, class) = job;
            // The writers are there for as long as this is.
            let _ = send.send((number, job, simulator.image(class, split, index)));
        });
    });
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_unstable_by_key(|(number, _)| *number);
    let mut write_table = || {
        table.put(HEADER.as_bytes())?;
        rows.iter().try_for_each(|(_, row)| table.put(row.as_bytes()))?;
        table.put(b"\n")
    };
    let written = write_table().and_then(|()| table.commit());
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => written.map(|()| rows.len() as u64),
    }
}

/// The value in a mutex; a panic of another thread ends the run anyway.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Path of an image in its set.
fn file_name((split, index, class): Job) -> String {
    format!("{}/{}/{}.npy", split.name(), class.name(), index + 1)
}

/// One line of the table, with the line break before it.
fn row(simulator: &Simulator, file: &str, (split, index, class): Job, image: &Simulated) -> String {
    let (p, lens) = (simulator.population(), &image.lens);
    let before = [
        p.z_lens,
        p.z_source,
        p.halo_mass,
        p.halo().theta_e,
        p.halo_e[0],
        p.halo_e[1],
        p.shear[0],
        p.shear[1],
        lens.source[0],
        lens.source[1],
        p.source.radius,
        p.source.n,
        p.source.e1,
        p.source.e2,
        p.source.amplitude,
    ];
    let after = [
        lens.substructure_mass(),
        lens.axion_mass,
        lens.vortex_half_length,
        lens.vortex_angle,
        p.psf_fwhm,
        p.sky,
        lens.exposure,
        image.counts.0,
        image.counts.1,
    ];
    // Debug, and not Display, has exponents, and both the shortest digits that read back as the same number.
    let join = |values: &[f64]| values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(",");
    let names = (class.name(), split.name(), index);
    format!("\n{file},{},{},{},{},{},{}", names.0, names.1, names.2, join(&before), lens.points.len(), join(&after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_goes_through_every_image_once() {
        let plan = Plan { classes: vec![Class::Vort, Class::No], train: 3, val: 1 };
        let all: Vec<_> = plan.all().collect();
        assert_eq!(all.len() as u64, plan.images());
        assert_eq!(
            all[..3],
            [(Split::Train, 0, Class::Vort), (Split::Train, 0, Class::No), (Split::Train, 1, Class::Vort)]
        );
        assert_eq!(all[7], (Split::Val, 0, Class::No));
    }
}
