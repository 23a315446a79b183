//! Loops compiled for several vector extensions, the widest of the machine chosen at run time.

/// Defines a function of a float type `T` whose body is compiled once for each vector extension and chosen at run time.
/// The body may call `#[inline(always)]` functions only: others would be compiled for the oldest processor.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name<T: crate::tensor::Real>($($arg: $kind),*) {
            #[inline(always)]
            fn body<T: crate::tensor::Real>($($arg: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<T: crate::tensor::Real>($($arg: $kind),*) {
                    body::<T>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<T: crate::tensor::Real>($($arg: $kind),*) {
                    body::<T>($($arg),*)
                }
                use crate::device::cpu::{Vectors, vectors};
                match vectors() {
                    // SAFETY: the processor has these features.
                    Vectors::Avx512 => unsafe { avx512::<T>($($arg),*) },
                    // SAFETY: the processor has these features.
                    Vectors::Avx2 => unsafe { avx2::<T>($($arg),*) },
                    Vectors::Sse2 => body::<T>($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body::<T>($($arg),*)
        }
    };
}
pub(crate) use vectorized;
