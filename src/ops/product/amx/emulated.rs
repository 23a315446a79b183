//! Runs the tile instructions on processors without them: each raises SIGILL, and a handler does what it would have done.

use std::cell::RefCell;
use std::sync::Once;

use super::multiply;
use crate::device::packed::{Element, LANES, Line, bf16_bits};
use crate::ops::product::portable;

/// The tile registers of a thread.
#[derive(Clone, Copy)]
struct Registers {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    tiles: [[[u8; 64]; 16]; 8],
}

const EMPTY: Registers = Registers { configured: false, rows: [0; 8], row_bytes: [0; 8], tiles: [[[0; 64]; 16]; 8] };

thread_local! {
    static REGISTERS: RefCell<Registers> = const { RefCell::new(EMPTY) };
    /// Instructions that this thread had emulated.
    static COUNT: RefCell<usize> = const { RefCell::new(0) };
}

/// A VEX-encoded instruction of map 0F38 with W = 0 and L = 0, and its operands.
struct Instruction {
    opcode: u8,
    /// Mandatory prefix: 0 none, 1 66, 2 F3, 3 F2.
    prefix: u8,
    reg: usize,
    rm: usize,
    vvvv: usize,
    /// Address of a memory operand without its index, and the value of the index.
    memory: Option<(usize, usize)>,
    length: usize,
}

/// Decodes the instruction at `code`, or `None` for one that is not of AMX. `register(n)` is general register n.
fn decode(code: &[u8; 12], register: impl Fn(usize) -> usize) -> Option<Instruction> {
    let [0xC4, second, third, opcode, modrm, ..] = *code else { return None };
    if second & 0x1F != 2 || third & 0x84 != 0 {
        return None;
    }
    let high = |bit: u8| if second & bit == 0 { 8usize } else { 0 };
    let (mode, reg, rm) = (modrm >> 6, (modrm >> 3 & 7) as usize, (modrm & 7) as usize);
    let mut length = 5;
    let memory = (mode != 3).then(|| {
        let (mut base, mut index) = (rm | high(0x20), 0);
        if rm == 4 {
            let sib = code[5];
            length += 1;
            base = (sib & 7) as usize | high(0x20);
            let number = (sib >> 3 & 7) as usize | high(0x40);
            index = if number == 4 { 0 } else { register(number) << (sib >> 6) };
        }
        assert!(mode != 0 || base & 7 != 5, "no address without a base");
        let displacement = match mode {
            0 => 0,
            1 => code[length] as i8 as isize,
            _ => i32::from_le_bytes(code[length..length + 4].try_into().expect("four bytes")) as isize,
        };
        length += [0, 1, 4][mode as usize];
        (register(base).wrapping_add_signed(displacement), index)
    });
    Some(Instruction { opcode, prefix: third & 3, reg, rm, vvvv: (!third >> 3 & 0xF) as usize, memory, length })
}

/// Does what `i` does; false for an instruction that is not of AMX.
///
/// # Safety
/// Its memory operands are valid, as for the instruction itself.
unsafe fn execute(registers: &mut Registers, i: &Instruction) -> bool {
    if i.opcode == 0x49 && i.prefix == 0 {
        *registers = EMPTY;
        if let Some((address, _)) = i.memory {
            // SAFETY: the operand of ldtilecfg has 64 bytes.
            let config = unsafe { std::slice::from_raw_parts(address as *const u8, 64) };
            assert_eq!((config[0], config[1]), (1, 0), "palette 1 from row 0 on");
            assert!(config[2..16].iter().chain(&config[32..48]).chain(&config[56..]).all(|&b| b == 0), "reserved");
            registers.configured = true;
            for tile in 0..8 {
                registers.rows[tile] = config[48 + tile].into();
                registers.row_bytes[tile] = u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]).into();
                assert!(registers.rows[tile] <= 16 && registers.row_bytes[tile] <= 64, "a tile is 16 rows of 64 bytes");
            }
        }
        return true;
    }
    assert!(registers.configured, "tiles are configured before they are used");
    let Registers { rows, row_bytes, tiles, .. } = registers;
    match (i.opcode, i.prefix, i.memory) {
        (0x49, 3, None) => tiles[i.reg] = [[0; 64]; 16],
        (0x4B, 3 | 2, Some((address, stride))) => {
            assert!(rows[i.reg] > 0 && row_bytes[i.reg] > 0, "tile {} is configured", i.reg);
            let load = i.prefix == 3;
            if load {
                tiles[i.reg] = [[0; 64]; 16];
            }
            for (row, tile) in tiles[i.reg].iter_mut().enumerate().take(rows[i.reg]) {
                let (memory, tile) = ((address + row * stride) as *mut u8, tile.as_mut_ptr());
                let (from, to) = if load { (memory.cast_const(), tile) } else { (tile.cast_const(), memory) };
                // SAFETY: rows of the operand, as for the instruction.
                unsafe { std::ptr::copy_nonoverlapping(from, to, row_bytes[i.reg]) };
            }
        }
        // The order of the sum over pairs is free; here it is that of the portable loops.
        (0x5C, 2, None) => {
            let (to, a, b) = (i.reg, i.rm, i.vvvv);
            assert!(to != a && to != b && a != b, "three tiles");
            assert_eq!((rows[to], row_bytes[to]), (rows[a], row_bytes[b]), "the sizes of the tiles fit");
            assert_eq!(row_bytes[a], 4 * rows[b], "the inner sizes of the tiles fit");
            let word = |tile: usize, row: usize, column: usize| {
                u32::from_le_bytes(tiles[tile][row][4 * column..][..4].try_into().expect("four bytes"))
            };
            let mut sums = [[0f32; 16]; 16];
            for (row, sums) in sums.iter_mut().enumerate().take(rows[to]) {
                for (column, sum_to) in sums.iter_mut().enumerate().take(row_bytes[to] / 4) {
                    let mut sum = f32::from_bits(word(to, row, column));
                    for k in 0..row_bytes[a] / 4 {
                        let (x, w) = (word(a, row, k), word(b, k, column));
                        sum += portable::low(x) * portable::low(w);
                        sum += portable::high(x) * portable::high(w);
                    }
                    *sum_to = sum;
                }
            }
            for (tile, sums) in tiles[to].iter_mut().zip(sums) {
                *tile = bytemuck::cast(sums);
            }
        }
        _ => return false,
    }
    true
}

/// General registers in the order of their numbers, as the context of a signal names them.
const NAMES: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Emulates the instruction that raised the signal and goes on behind it.
extern "C" fn on_illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system hands the context of the interrupted thread, whose instruction pointer names code.
    let (general, code) = unsafe {
        let general = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = &*(general[libc::REG_RIP as usize] as *const [u8; 12]);
        (general, code)
    };
    let instruction = decode(code, |n| general[NAMES[n] as usize] as usize);
    let done = instruction.is_some_and(|i| {
        general[libc::REG_RIP as usize] += i.length as i64;
        COUNT.with(|count| *count.borrow_mut() += 1);
        // SAFETY: the code under test promises its operands.
        REGISTERS.with(|r| unsafe { execute(&mut r.borrow_mut(), &i) })
    });
    if !done {
        // Some other illegal instruction: end as without a handler.
        // SAFETY: a signal's default action is restored; its instruction runs again.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

fn emulate() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: an action with all fields set; the handler touches this thread's registers alone.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

#[test]
fn the_tile_loop_gives_the_bits_of_the_portable_loop() {
    emulate();
    let mut seed = 1u32;
    let mut number = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut line = || Line(std::array::from_fn(|_| bf16_bits(number()) | bf16_bits(number()) << 16));
    for (rows, lines, panels) in
        [(1, 1, 1), (1, 3, 2), (2, 1, 2), (3, 2, 1), (16, 2, 2), (17, 3, 2), (28, 4, 2), (32, 3, 1), (32, 2, 2)]
    {
        let a: Vec<Line> = (0..rows * lines).map(|_| line()).collect();
        let b: Vec<Line> = (0..panels * lines * LANES).map(|_| line()).collect();
        // What lies between the rows stays as it was.
        let stride = panels * LANES + 16;
        let [mut got, mut want] = [[7f32; 2048]; 2];
        let before = COUNT.with(|count| *count.borrow());
        // SAFETY: the instructions that the processor lacks are emulated; the sizes are within the bounds.
        unsafe { multiply(&a, rows, &b, panels, &b, &mut got, stride) };
        portable::multiply(Element::Bf16Pair, &a, rows, &b, panels, &mut want, stride);
        let (got, want) = (&got[..rows * stride], &want[..rows * stride]);
        let emulated = COUNT.with(|count| *count.borrow()) > before;
        if emulated {
            assert_eq!(got, want, "{rows} rows, {lines} lines, {panels} panels");
        } else {
            // The processor's own tiles sum the pairs in another order.
            let far = got.iter().zip(want).any(|(g, w)| (g - w).abs() > 1e-4);
            assert!(!far, "{rows} rows, {lines} lines, {panels} panels");
        }
    }
}
