# The guest that says whether hardware virtualization really runs guests. It is a 64 KiB BIOS: from
# the reset vector through protected mode into long mode with paging and NX, with model specific
# registers, CPUID, SSE and a write to every page of 2 MiB on the way; then it ends the machine with
# exit code 33. A /dev/kvm that only pretends hangs or dies somewhere here.
#
#   as --64 -o probe.o probe-guest.S && ld -Ttext=0xffff0000 --oformat binary -o probe.bin probe.o
#
# Only the bytes from `start` to `end` are in probe-guest.ts; a test holds the two together.
        .set    BASE, 0xffff0000
        .set    RAM, 0x8000
        .set    AT, RAM - (start - bios)        # what to add to an offset in the BIOS to be in RAM
        .text
        .globl  _start
_start:
bios:
        .org    0xf000
start:
        .code16
        cli
        lgdtl   %cs:(gdtr - bios)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $8, $(BASE + (protected - bios))
        .code32
protected:
        movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $(BASE + (start - bios)), %esi  # the ROM is not mapped once paging is on
        movl    $RAM, %edi
        movl    $(end - start), %ecx
        rep movsb
        movl    $(AT + (in_ram - bios)), %eax
        jmp     *%eax
in_ram:
        xorl    %eax, %eax
        movl    $0x1000, %edi
        movl    $0xc00, %ecx
        rep stosl
        movl    $0x2003, 0x1000                 # PML4 -> PDPT -> PD -> one page of 2 MiB
        movl    $0x3003, 0x2000
        movl    $0x83, 0x3000
        movl    $0x1000, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x620, %eax                    # PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x900, %eax                    # LME, NXE
        wrmsr
        movl    %cr0, %eax
        andl    $0xfffffffb, %eax               # no x87 emulation
        orl     $0x80000002, %eax
        movl    %eax, %cr0
        lgdt    AT + (gdtr_ram - bios)
        ljmp    $24, $(AT + (long_mode - bios))
        .code64
long_mode:
        xorl    %eax, %eax
        movl    %eax, %ds
        movl    %eax, %ss
        movl    $0x10000, %esp
        cpuid
        movd    %ebx, %xmm0
        rdtsc
        pushq   %rax
        movl    $0x10, %ecx                     # IA32_TIME_STAMP_COUNTER
        rdmsr
        popq    %rbx
        movl    $0x20000, %edi
1:      addl    %ecx, (%rdi)
        addl    $0x1000, %edi
        cmpl    $0x1f0000, %edi
        jb      1b
        movl    $0x10, %eax
        movl    $0xf4, %edx                     # isa-debug-exit: ends QEMU with 2 * 16 + 1
        outl    %eax, %dx
2:      hlt
        jmp     2b
        .balign 8
gdt:    .quad   0
        .quad   0x00cf9a000000ffff              # 32 bit code
        .quad   0x00cf92000000ffff              # data
        .quad   0x00af9a000000ffff              # 64 bit code
gdtr:   .word   31
        .long   BASE + (gdt - bios)
gdtr_ram:
        .word   31
        .long   AT + (gdt - bios)
end:
        .org    0xfff0
        .code16
        jmp     start
        .org    0x10000
