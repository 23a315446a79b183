//! Loops compiled for several vector extensions, the widest of the machine chosen at run time.

/// Defines a function of a float type `T` whose body is compiled once for each vector extension and chosen at run time.
/// The body may call `#[inline(always)]` functions only: others would be compiled for the oldest processor.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name<T: crate::tensor::Real>($($arg: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body<T: crate::tensor::Real>($($arg: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512<T: crate::tensor::Real>($($arg: $kind),*) $(-> $result)? {
                    body::<T>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<T: crate::tensor::Real>($($arg: $kind),*) $(-> $result)? {
                    body::<T>($($arg),*)
                }
                use crate::device::level::Level;
                match Level::detect() {
                    Level::Portable => body::<T>($($arg),*),
                    // SAFETY: the processor has these features.
                    Level::Avx2 => unsafe { avx2::<T>($($arg),*) },
                    // SAFETY: the processor has these features.
                    _ => unsafe { avx512::<T>($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body::<T>($($arg),*)
        }
    };
}
pub(crate) use vectorized;
