/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * The guest's whole program, one position-independent blob that
 * machine-arm64.c copies into control memory. A call begins in guest_enter at
 * EL1, which finds in the vCPU's area (its address is in TPIDR_EL0) where to
 * go on, at which level and with which arguments. Routines enter with these
 * in x0 to x3, and leave through `done` with the result in x0. They use no
 * stack: that is the interrupts'.
 */

/* struct area and struct machine_scan; machine-arch.h asserts that they
 * match. */
#define AREA_TICKS	0x00
#define AREA_RESULT	0x10
#define AREA_SCAN	0x40
#define AREA_ARCH	0x80
#define AREA_SIZE	0x2000
#define SCAN_BASE	(AREA_SCAN + 0x00)
#define SCAN_FIRST	(AREA_SCAN + 0x10)
#define SCAN_COUNT	(AREA_SCAN + 0x20)
#define SCAN_PROGRESS	(AREA_SCAN + 0x28)
#define SCAN_CHECKSUM	(AREA_SCAN + 0x30)

/* What machine-arm64.c puts into area.arch; the period is the stub's own. */
#define CALL_ENTRY	(AREA_ARCH + 0x00)	/* and the state */
#define CALL_ARGS	(AREA_ARCH + 0x10)
#define CALL_RATE	(AREA_ARCH + 0x30)
#define CALL_PERIOD	(AREA_ARCH + 0x38)

#define SCAN_SEED	0x243f6a8885a308d3
#define SCAN_MUL	0x9e3779b97f4a7c15

/* Nobody is there: whoever writes to it exits. */
#define DONE_GPA	0xe0000000
#define CRASHED_GPA	0xe0000008

/* Not all assemblers know their names. */
#define ICC_PMR_EL1	S3_0_C4_C6_0
#define ICC_RPR_EL1	S3_0_C12_C11_3
#define ICC_IAR1_EL1	S3_0_C12_C12_0
#define ICC_EOIR1_EL1	S3_0_C12_C12_1
#define ICC_IGRPEN1_EL1	S3_0_C12_C12_7
#define TIMER_INTERRUPT	27
#define NO_PRIORITY	0xff		/* nothing is being handled */

	.macro	entry name
	.global	\name
	.hidden	\name
	.balign	16
\name:
	.endm

	.section .rodata.guest, "a", %progbits
	.balign	2048
entry guest_start

/* Of the sixteen only interrupts mean well: of EL1, and of EL0. */
	.macro	vector to
	.balign	128
	b	\to
	.endm

entry guest_vectors
	.rept	5
	vector	crash
	.endr
	vector	tick
	.rept	3
	vector	crash
	.endr
	vector	tick
	.rept	6
	vector	crash
	.endr

/* Not meant to be run on from; what is written says why. */
crash:	mrs	x0, esr_el1
	mov	x9, #CRASHED_GPA & 0xffff0000
	str	x0, [x9, #CRASHED_GPA & 0xffff]
	b	crash

/* Timer interrupt: the next one is a period from now. */
tick:	stp	x0, x1, [sp, #-16]!
	mrs	x1, tpidr_el0
	mrs	x0, ICC_IAR1_EL1
	cmp	w0, #TIMER_INTERRUPT
	b.ne	1f			/* it has gone away */
	ldr	x0, [x1, #CALL_PERIOD]
	msr	cntv_tval_el0, x0
	isb				/* or it is still pending */
	mov	x0, #TIMER_INTERRUPT
	msr	ICC_EOIR1_EL1, x0
	ldr	x0, [x1, #AREA_TICKS]
	add	x0, x0, #1
	str	x0, [x1, #AREA_TICKS]
1:	ldp	x0, x1, [sp], #16
	eret

/* Where each call begins. What was going on before is left, maybe an interrupt
 * that was being handled; the timer runs on. */
entry guest_enter
	mrs	x9, tpidr_el0
	add	sp, x9, #AREA_SIZE
	ldr	x10, [x9, #CALL_RATE]
	cbz	x10, enter
	mrs	x11, cntfrq_el0
	udiv	x10, x11, x10
	str	x10, [x9, #CALL_PERIOD]
	mov	x11, #0xff
	msr	ICC_PMR_EL1, x11
	mov	x11, #1
	msr	ICC_IGRPEN1_EL1, x11
	isb
	mrs	x11, ICC_RPR_EL1
	cmp	w11, #NO_PRIORITY
	b.eq	1f
	msr	cntv_tval_el0, x10
	isb
	mov	x11, #TIMER_INTERRUPT
	msr	ICC_EOIR1_EL1, x11
1:	mrs	x11, cntv_ctl_el0
	tbnz	w11, #0, enter
	msr	cntv_tval_el0, x10
	mov	x11, #1
	msr	cntv_ctl_el0, x11

enter:	ldp	x10, x11, [x9, #CALL_ENTRY]
	msr	elr_el1, x10
	msr	spsr_el1, x11
	ldp	x0, x1, [x9, #CALL_ARGS]
	ldp	x2, x3, [x9, #CALL_ARGS + 16]
	eret

/* Common end: x0 is the result. Not meant to be run on from here. */
done:	mrs	x9, tpidr_el0
	str	x0, [x9, #AREA_RESULT]
finished:
	mov	x9, #DONE_GPA
	str	xzr, [x9]
	b	finished

/* x0 = the x1 bytes at x0 */
entry guest_read
	cmp	x1, #8
	b.eq	8f
	cmp	x1, #4
	b.eq	4f
	cmp	x1, #2
	b.eq	2f
	ldrb	w0, [x0]
	b	done
2:	ldrh	w0, [x0]
	b	done
4:	ldr	w0, [x0]
	b	done
8:	ldr	x0, [x0]
	b	done

/* the x1 bytes at x0 = x2 */
entry guest_write
	cmp	x1, #8
	b.eq	8f
	cmp	x1, #4
	b.eq	4f
	cmp	x1, #2
	b.eq	2f
	strb	w2, [x0]
	b	done
2:	strh	w2, [x0]
	b	done
4:	str	w2, [x0]
	b	done
8:	str	x2, [x0]
	b	done

/* x0 = *x0, *x0 = x1, at once; not every CPU has one instruction for it */
entry guest_exchange
	mov	x9, x0
1:	ldaxr	x0, [x9]
	stlxr	w10, x1, [x9]
	cbnz	w10, 1b
	b	done

/* x0 = *x0, *x0 += x1, at once */
entry guest_add
	mov	x9, x0
1:	ldaxr	x0, [x9]
	add	x11, x0, x1
	stlxr	w10, x11, [x9]
	cbnz	w10, 1b
	b	done

/* result = 16 bytes at x0 */
entry guest_read16
	mrs	x9, tpidr_el0
	ldr	q0, [x0]
	str	q0, [x9, #AREA_RESULT]
	b	finished

/* 16 bytes at x0 = x1, x2 */
entry guest_write16
	fmov	d0, x1
	fmov	v0.d[1], x2
	str	q0, [x0]
	b	finished

/* x2 bytes from x1 to x0 */
entry guest_copy
	mov	x9, #0
1:	cmp	x9, x2
	b.eq	done
	ldrb	w10, [x1, x9]
	strb	w10, [x0, x9]
	add	x9, x9, #1
	b	1b

/* the 32 registers of SIMD and floating point, 16 bytes each, at x0 */
	.macro	fpu op
	\op	q0, q1, [x0, #0x000]
	\op	q2, q3, [x0, #0x020]
	\op	q4, q5, [x0, #0x040]
	\op	q6, q7, [x0, #0x060]
	\op	q8, q9, [x0, #0x080]
	\op	q10, q11, [x0, #0x0a0]
	\op	q12, q13, [x0, #0x0c0]
	\op	q14, q15, [x0, #0x0e0]
	\op	q16, q17, [x0, #0x100]
	\op	q18, q19, [x0, #0x120]
	\op	q20, q21, [x0, #0x140]
	\op	q22, q23, [x0, #0x160]
	\op	q24, q25, [x0, #0x180]
	\op	q26, q27, [x0, #0x1a0]
	\op	q28, q29, [x0, #0x1c0]
	\op	q30, q31, [x0, #0x1e0]
	.endm

entry guest_fpu_save
	fpu	stp
	b	done

entry guest_fpu_restore
	fpu	ldp
	b	done

/* call the code at x0 with x0 = x1 */
entry guest_jump
	mov	x9, x0
	mov	x0, x1
	blr	x9
	b	done

/* hypercall x0 with x1, x2, x3 */
entry guest_hypercall
	hvc	#0
	b	done

/* count x0 down, in registers alone */
entry guest_spin
1:	subs	x0, x0, #1
	b.ne	1b
	b	done

/* the words at the x1 addresses at x0; x2: writes first */
entry guest_touch
	mov	x9, x0
	ldr	x15, =SCAN_MUL
	mov	x0, #0
	cbz	x1, done
1:	ldr	x10, [x9], #8
	cbz	x2, 2f
	str	x10, [x10, #8]
2:	ldr	x11, [x10]
	eor	x0, x11, x0, ror #59
	mul	x0, x0, x15
	subs	x1, x1, #1
	b.ne	1b
	b	done

/*
 * The scan of machine.h.
 *	x0 sum			x1 page pointer		x2 word, scratch
 *	x3 end of the page	x9 area			x10 base
 *	x11 pages		x12 page number p	x13 stride
 *	x14 pages left		x15 SCAN_MUL		x16 SCAN_SEED
 */
entry guest_scan
	mrs	x9, tpidr_el0
	ldp	x10, x11, [x9, #SCAN_BASE]
	ldp	x12, x13, [x9, #SCAN_FIRST]
	ldr	x14, [x9, #SCAN_COUNT]
	ldr	x15, =SCAN_MUL
	ldr	x16, =SCAN_SEED
	add	x17, x9, #SCAN_PROGRESS
	mov	x0, #0
	cbz	x14, done

page:	add	x1, x10, x12, lsl #12
	add	x3, x1, #4096
	mov	x0, x16
word:	ldr	x2, [x1], #8
	eor	x0, x2, x0, ror #59
	mul	x0, x0, x15
	cmp	x1, x3
	b.ne	word
	str	x0, [x3, #-8]

	mul	x2, x12, x15
	eor	x2, x2, x0
	ldr	x4, [x9, #SCAN_CHECKSUM]
	add	x4, x4, x2
	str	x4, [x9, #SCAN_CHECKSUM]
	ldr	x4, [x17]
	add	x4, x4, #1
	stlr	x4, [x17]		/* the page is written by then */

	add	x12, x12, x13
	cmp	x12, x11
	b.lo	1f
	sub	x12, x12, x11
1:	subs	x14, x14, #1
	b.ne	page
	mov	x0, #0
	b	done

	.ltorg
entry guest_end

	.section .note.GNU-stack, "", %progbits
