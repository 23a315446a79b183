//! Deflection fields: singular isothermal ellipsoid, external shear, point masses. Every function adds (`+=`) to a field,
//! as deflections of thin lenses in one plane add up.

use super::grid::Grid;
use crate::ops::simd::vectorized;

/// Reduced deflection angles in arcsec of each pixel of a grid, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Deflection {
    /// Along x.
    pub x: Vec<f64>,
    /// Along y.
    pub y: Vec<f64>,
}

impl Deflection {
    /// No deflection.
    pub fn zeros(grid: Grid) -> Self {
        Self { x: vec![0.0; grid.pixels()], y: vec![0.0; grid.pixels()] }
    }
}

/// A singular isothermal ellipsoid on the optical axis (Kormann, Schneider & Bartelmann 1994), in lenstronomy's convention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sie {
    /// Einstein radius of the product average: the circle of radius `theta_e` sqrt(q) sqrt(1/q), arcsec.
    pub theta_e: f64,
    /// Ellipticity (1 - q) / (1 + q) along x and y ...
    pub e1: f64,
    /// ... and along the diagonals.
    pub e2: f64,
}

/// Angle of the major axis and axis ratio q of an ellipticity; q is kept from 0 and 1, where formulas divide by zero.
pub(super) fn axes(e1: f64, e2: f64) -> (f64, f64) {
    let e = (e1 * e1 + e2 * e2).sqrt().clamp(1e-10, 0.9999);
    (libm::atan2(e2, e1) / 2.0, (1.0 - e) / (1.0 + e))
}

/// Adds the deflection of `lens`.
pub fn add_sie(field: &mut Deflection, grid: Grid, lens: &Sie) {
    // Core that keeps the centre finite, arcsec: lenstronomy's.
    const CORE: f64 = 1e-10;
    let (angle, q) = axes(lens.e1, lens.e2);
    let (sin, cos) = libm::sincos(angle);
    let f = (1.0 - q * q).sqrt();
    let strength = lens.theta_e * q.sqrt() / f;
    let core = CORE / q.sqrt();
    for row in 0..grid.side {
        let y = grid.coordinate(row);
        for column in 0..grid.side {
            let x = grid.coordinate(column);
            let (u, v) = (cos * x + sin * y, cos * y - sin * x);
            let psi = (q * q * (core * core + u * u) + v * v).sqrt();
            let along = strength * libm::atan(f * u / (psi + core));
            let across = strength * libm::atanh(f * v / (psi + q * q * core));
            let i = row * grid.side + column;
            field.x[i] += cos * along - sin * across;
            field.y[i] += sin * along + cos * across;
        }
    }
}

/// Adds an external shear (gamma1, gamma2).
pub fn add_shear(field: &mut Deflection, grid: Grid, [gamma1, gamma2]: [f64; 2]) {
    for row in 0..grid.side {
        let y = grid.coordinate(row);
        for column in 0..grid.side {
            let x = grid.coordinate(column);
            let i = row * grid.side + column;
            field.x[i] += gamma1 * x + gamma2 * y;
            field.y[i] += gamma2 * x - gamma1 * y;
        }
    }
}

/// A point mass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PointMass {
    /// Position, arcsec.
    pub x: f64,
    /// Position, arcsec.
    pub y: f64,
    /// Mass, solar masses.
    pub mass: f64,
}

/// Points that share a division.
const GROUP: usize = 4;

/// Adds the deflections of `points`, theta_E^2 r / |r|^2 each; `theta_e` is the Einstein radius of one solar mass, arcsec.
pub fn add_points(field: &mut Deflection, grid: Grid, points: &[PointMass], theta_e: f64) {
    // Fills the last group: weighs nothing, and lies where no pixel is.
    const NOTHING: PointMass = PointMass { x: 1e3, y: 1e3, mass: 0.0 };
    let axis = grid.axis();
    let square = theta_e * theta_e;
    let rows = field.x.chunks_exact_mut(grid.side).zip(field.y.chunks_exact_mut(grid.side));
    for (row, (to_x, to_y)) in rows.enumerate() {
        for group in points.chunks(GROUP) {
            let each: [PointMass; GROUP] = std::array::from_fn(|k| *group.get(k).unwrap_or(&NOTHING));
            let dy = each.map(|p| axis[row] - p.y);
            add_group_to_row::<f64>(to_x, to_y, &axis, each.map(|p| p.x), dy, each.map(|p| square * p.mass));
        }
    }
}

vectorized! {
    /// Adds what points of squared Einstein radii `squares` at `x`, `dy` below the row, do to a row.
    ///
    /// Bound by divisions, of which one serves all: 1 / a = b (1 / (a b)).
    fn add_group_to_row(to_x: &mut [T], to_y: &mut [T], axis: &[T], x: [T; GROUP], dy: [T; GROUP], squares: [T; GROUP]) {
        // Keeps a pixel right under a point finite, and changes nothing anywhere else.
        let tiny = T::from_f64(1e-30);
        for ((to_x, to_y), &at) in to_x.iter_mut().zip(to_y).zip(axis) {
            let dx = [at - x[0], at - x[1], at - x[2], at - x[3]];
            let r = |k: usize| dx[k] * dx[k] + (dy[k] * dy[k] + tiny);
            let (a, b, c, d) = (r(0), r(1), r(2), r(3));
            let (front, back) = (a * b, c * d);
            let inverse = T::from_f64(1.0) / (front * back);
            let (of_front, of_back) = (inverse * back, inverse * front);
            let weights =
                [squares[0] * b * of_front, squares[1] * a * of_front, squares[2] * d * of_back, squares[3] * c * of_back];
            *to_x += weights[0] * dx[0] + weights[1] * dx[1] + (weights[2] * dx[2] + weights[3] * dx[3]);
            *to_y += weights[0] * dy[0] + weights[1] * dy[1] + (weights[2] * dy[2] + weights[3] * dy[3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { side: 21, scale: 0.1 };

    #[test]
    fn a_round_ellipsoid_is_an_isothermal_sphere() {
        let mut field = Deflection::zeros(GRID);
        add_sie(&mut field, GRID, &Sie { theta_e: 1.3, e1: 0.0, e2: 0.0 });
        for row in 0..GRID.side {
            for column in 0..GRID.side {
                let (x, y) = (GRID.coordinate(column), GRID.coordinate(row));
                let r = x.hypot(y);
                let i = row * GRID.side + column;
                let (want_x, want_y) = if r > 1e-9 { (1.3 * x / r, 1.3 * y / r) } else { (0.0, 0.0) };
                assert!((field.x[i] - want_x).abs() < 1e-8 && (field.y[i] - want_y).abs() < 1e-8, "{x} {y}");
            }
        }
    }

    /// Turning lens and position together turns the deflection: e2 of an ellipsoid is e1 seen under 45 degrees.
    #[test]
    fn ellipticity_turns_with_the_lens() {
        let one = |grid: Grid, e1, e2| {
            let mut field = Deflection::zeros(grid);
            add_sie(&mut field, grid, &Sie { theta_e: 1.0, e1, e2 });
            field
        };
        // Upper right corner of a grid, and the point on the x axis that it is turned to.
        let (corner, wide) = (Grid { side: 2, scale: 2.0 }, Grid { side: 3, scale: 2f64.sqrt() });
        let turned = one(corner, 0.0, 0.2);
        let straight = one(wide, 0.2, 0.0);
        let (along, across) = (straight.x[5], straight.y[5]);
        assert!(across.abs() < 1e-12 && along > 0.5);
        let expected = along / 2f64.sqrt();
        assert!((turned.x[3] - expected).abs() < 1e-9 && (turned.y[3] - expected).abs() < 1e-9, "{turned:?}");
    }

    #[test]
    fn a_point_deflects_by_its_einstein_radius_there() {
        let grid = Grid { side: 5, scale: 0.5 };
        let mut field = Deflection::zeros(grid);
        // One pixel lies right on the point, its neighbour one Einstein radius beside it.
        add_points(&mut field, grid, &[PointMass { x: 0.0, y: -0.5, mass: 4.0 }], 0.25);
        assert_eq!((field.x[7], field.y[7]), (0.0, 0.0));
        assert!((field.x[8] - 0.5).abs() < 1e-15 && field.y[8] == 0.0, "{} {}", field.x[8], field.y[8]);
        assert!((field.y[2] + 0.5).abs() < 1e-15 && (field.y[12] - 0.5).abs() < 1e-15);
    }

    /// The formula itself, point by point, for numbers of points that fill the last group or do not.
    #[test]
    fn points_add_up_whatever_their_number() {
        let point = |i: usize| PointMass { x: 0.37 * i as f64 - 1.1, y: 0.9 - 0.21 * i as f64, mass: 1.0 + i as f64 };
        for n in 0..10 {
            let points: Vec<PointMass> = (0..n).map(point).collect();
            let mut field = Deflection::zeros(GRID);
            add_points(&mut field, GRID, &points, 0.3);
            for i in 0..GRID.pixels() {
                let (x, y) = (GRID.coordinate(i % GRID.side), GRID.coordinate(i / GRID.side));
                let (mut want_x, mut want_y) = (0.0, 0.0);
                for p in &points {
                    let weight = 0.09 * p.mass / ((x - p.x).powi(2) + (y - p.y).powi(2));
                    want_x += weight * (x - p.x);
                    want_y += weight * (y - p.y);
                }
                let near = |got: f64, want: f64| (got - want).abs() < 1e-12 * (1.0 + want.abs());
                assert!(near(field.x[i], want_x) && near(field.y[i], want_y), "{n} points, pixel {i}");
            }
        }
    }

    #[test]
    fn shear_stretches_one_axis() {
        let mut field = Deflection::zeros(GRID);
        add_shear(&mut field, GRID, [0.1, 0.02]);
        let (x, y) = (GRID.coordinate(20), GRID.coordinate(3));
        let i = 3 * GRID.side + 20;
        assert!((field.x[i] - (0.1 * x + 0.02 * y)).abs() < 1e-15);
        assert!((field.y[i] - (0.02 * x - 0.1 * y)).abs() < 1e-15);
    }
}
