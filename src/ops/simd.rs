//! Loops compiled for several vector extensions, the widest of the machine chosen at run time.

/// Defines a function whose body is compiled once for each vector extension and chosen at run time: of a float type `T`, or
/// after the word `plain` of none. The body may call `#[inline(always)]` functions only: others would be compiled for the
/// oldest processor.
macro_rules! vectorized {
    (@ [$($generics:tt)*] [$($of:tt)*] $(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?)
        $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $($generics)* ($($arg: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body $($generics)* ($($arg: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $($generics)* ($($arg: $kind),*) $(-> $result)? {
                    body $($of)* ($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $($generics)* ($($arg: $kind),*) $(-> $result)? {
                    body $($of)* ($($arg),*)
                }
                use crate::device::level::Level;
                match Level::detect() {
                    Level::Portable => body $($of)* ($($arg),*),
                    // SAFETY: the processor has these features.
                    Level::Avx2 => unsafe { avx2 $($of)* ($($arg),*) },
                    // SAFETY: the processor has these features.
                    _ => unsafe { avx512 $($of)* ($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body $($of)* ($($arg),*)
        }
    };
    (plain $($function:tt)*) => { vectorized! { @ [] [] $($function)* } };
    ($($function:tt)*) => { vectorized! { @ [<T: crate::tensor::Real>] [::<T>] $($function)* } };
}
pub(crate) use vectorized;
