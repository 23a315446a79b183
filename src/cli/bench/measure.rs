//! Runs of one model at one batch size, and how often.

use std::time::Instant;

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::flow::sampler::{MAX_GRAPH_EVALUATIONS, Sampler, SamplerOptions};
use arclet::flow::schedule::Schedule;
use arclet::models::Model;

/// How often to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Runs that are thrown away.
    pub warm_ups: usize,
    /// Measured runs, however long one takes.
    pub least: usize,
    /// Measured runs, however short one is.
    pub most: usize,
    /// Between the two, until this much time has passed.
    pub seconds: f64,
}

impl Plan {
    /// `runs` after `warm_ups`.
    pub fn exactly(warm_ups: usize, runs: usize) -> Self {
        Self { warm_ups, least: runs, most: runs, seconds: 0.0 }
    }

    /// The milliseconds of each run; `run` returns its own.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn times(self, mut run: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
        for _ in 0..self.warm_ups {
            run()?;
        }
        let (mut times, begin) = (Vec::new(), Instant::now());
        while times.len() < self.least || times.len() < self.most && begin.elapsed().as_secs_f64() < self.seconds {
            times.push(run()?);
        }
        Ok(times)
    }
}

/// A model ready to be run. Each run starts from noise of its own, or from noise that was given.
pub struct Subject<'a> {
    device: &'a Device,
    sampler: Sampler<'a>,
    classes: Vec<usize>,
    noise: Option<&'a [f32]>,
    runs: u64,
}

impl<'a> Subject<'a> {
    /// `batch` images at a time; `noise` [batch, C, H, W] in place of random noise; on a GPU as one `graph`, or launch
    /// by launch.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; the sampler's and the device's.
    pub fn new(
        model: &'a Model,
        schedule: &Schedule,
        batch: usize,
        guidance: f32,
        noise: Option<&'a [f32]>,
        graph: bool,
    ) -> Result<Self> {
        let limit = graph.then_some(MAX_GRAPH_EVALUATIONS);
        let options = SamplerOptions { guidance, clamp: true };
        let sampler = Sampler::with_graphs_of(limit, model, schedule, batch, options)?;
        let classes = match &model.config.classes {
            Some(classes) => (0..batch).map(|i| i % classes.names.len()).collect(),
            None => Vec::new(),
        };
        Ok(Self { device: &model.device, sampler, classes, noise, runs: 0 })
    }

    /// One call from noise to images in host memory: milliseconds of the host's clock.
    ///
    /// # Errors
    /// The sampler's; [`Error::Runtime`] for images that are not finite.
    pub fn call(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.set_noise()?;
        self.sampler.run(&self.classes)?;
        let images = self.sampler.state()?;
        let elapsed = milliseconds(start);
        finite(&images)?;
        Ok(elapsed)
    }

    /// The loop alone, noise and images on the device: milliseconds between two events of a GPU around all of its
    /// work. On the CPU, which has none, a call.
    ///
    /// # Errors
    /// The sampler's and the device's.
    pub fn device_time(&mut self) -> Result<f64> {
        let Device::Cuda(cuda) = self.device else { return self.call() };
        let (start, end) = (cuda.event()?, cuda.event()?);
        self.sampler.prepare(&self.classes)?;
        // Noise is drawn last, so that the GPU is still busy with it while the host enqueues what is measured.
        self.set_noise()?;
        cuda.record(&start)?;
        self.sampler.enqueue()?;
        cuda.record(&end)?;
        cuda.elapsed_ms(&start, &end)
    }

    /// Refuses what the last run left if it is not finite.
    ///
    /// # Errors
    /// [`Error::Runtime`]; the device's.
    pub fn check_images(&self) -> Result<()> {
        finite(&self.sampler.state()?)
    }

    fn set_noise(&mut self) -> Result<()> {
        self.runs += 1;
        match self.noise {
            Some(noise) => self.sampler.set_noise(noise),
            None => self.sampler.draw_noise(self.runs, 0),
        }
    }
}

fn finite(images: &[f32]) -> Result<()> {
    match images.iter().all(|v| v.is_finite()) {
        true => Ok(()),
        false => Err(Error::Runtime("the images hold values that are not finite".into())),
    }
}

/// Milliseconds since `start`.
pub fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_count_runs_as_they_say() {
        let mut runs = 0;
        let mut count = |plan: Plan| {
            runs = 0;
            let times = plan.times(|| {
                runs += 1;
                Ok(f64::from(runs))
            });
            times.unwrap()
        };
        assert_eq!(count(Plan::exactly(2, 3)), [3.0, 4.0, 5.0]);
        assert_eq!(count(Plan { warm_ups: 0, least: 2, most: 4, seconds: 0.0 }).len(), 2);
        assert_eq!(count(Plan { warm_ups: 1, least: 2, most: 4, seconds: 60.0 }).len(), 4);
    }
}
