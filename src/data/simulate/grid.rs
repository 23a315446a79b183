//! Square pixels around the optical axis.

/// A square image: row = y, column = x, the origin in its middle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Pixels of a side.
    pub side: usize,
    /// Side of a pixel, arcsec.
    pub scale: f64,
}

impl Grid {
    /// Centre of pixel `i` of a row or a column, arcsec.
    pub fn coordinate(&self, i: usize) -> f64 {
        (i as f64 - (self.side as f64 - 1.0) / 2.0) * self.scale
    }

    /// Centres of all pixels of a row or a column, arcsec.
    pub fn axis(&self) -> Vec<f64> {
        (0..self.side).map(|i| self.coordinate(i)).collect()
    }

    /// Number of pixels.
    pub fn pixels(&self) -> usize {
        self.side * self.side
    }
}
