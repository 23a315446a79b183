//! Loops compiled for several vector extensions, the widest of the machine chosen at run time.

/// Defines a function of a float type `T` whose body is compiled once for each vector extension and chosen at run time.
/// The body may call `#[inline(always)]` functions only: others would be compiled for the oldest processor.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<T: crate::tensor::Real>($($arg: $kind),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<T: crate::tensor::Real>($($arg: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512<T: crate::tensor::Real>($($arg: $kind),*) {
                    body::<T>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<T: crate::tensor::Real>($($arg: $kind),*) {
                    body::<T>($($arg),*)
                }
                if is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has these features (and with them AVX2 and FMA).
                    return unsafe { avx512::<T>($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has these features.
                    return unsafe { avx2::<T>($($arg),*) };
                }
            }
            body::<T>($($arg),*)
        }
    };
}
pub(crate) use vectorized;
