/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * The guest's whole program, one position-independent blob that machine.c
 * copies into control memory. Routines enter with arguments in rdi, rsi,
 * rdx and rcx, rsp at the top of the vCPU's stack and gs at its area, and
 * leave through `done` with the result in rax. They never use memory below
 * rsp (interrupts do) and keep to instructions that KVM can emulate, since
 * on some back ends it emulates all of CPL 0.
 */

/* struct area and struct machine_scan; machine.c asserts that they match. */
#define AREA_TICKS	0x00
#define AREA_INTERRUPTS	0x08
#define AREA_RESULT	0x10
#define AREA_SCAN	0x40
#define AREA_ARCH	0x80
#define SCAN_BASE	(AREA_SCAN + 0x00)
#define SCAN_PAGES	(AREA_SCAN + 0x08)
#define SCAN_FIRST	(AREA_SCAN + 0x10)
#define SCAN_STRIDE	(AREA_SCAN + 0x18)
#define SCAN_COUNT	(AREA_SCAN + 0x20)
#define SCAN_PROGRESS	(AREA_SCAN + 0x28)
#define SCAN_CHECKSUM	(AREA_SCAN + 0x30)

/* What machine-x86_64.c finds in area.arch. */
#define FAULT_STATE	(AREA_ARCH + 0x00)	/* of the last one */
#define FAULT_SAME	(AREA_ARCH + 0x08)	/* how often in a row */
#define FAULT_RETRIED	(AREA_ARCH + 0x10)
#define FAULT_VECTOR	(AREA_ARCH + 0x18)	/* of that which ended it */
#define FAULT_ERROR	(AREA_ARCH + 0x20)
#define FAULT_RIP	(AREA_ARCH + 0x28)
#define FAULT_RFLAGS	(AREA_ARCH + 0x30)
#define FAULT_RSP	(AREA_ARCH + 0x38)
#define FAULT_TRIES	(AREA_ARCH + 0x40)

#define SCAN_SEED	0x243f6a8885a308d3
#define SCAN_MUL	0x9e3779b97f4a7c15

#define DONE_PORT	0xf4
#define CRASHED_PORT	0xf6
#define APIC_EOI	0xfee000b0

	.macro	entry name
	.global	\name
	.hidden	\name
	.balign	16
\name:
	.endm

	.section .rodata.guest, "a", @progbits
	.balign	64
entry guest_start

/* Common end: rax is the result. Not meant to be run on from here. */
done:
	movq	%rax, %gs:AREA_RESULT
finished:
	outb	%al, $DONE_PORT
	jmp	finished

/* rax = the rsi bytes at rdi */
entry guest_read
	xorl	%eax, %eax
	cmpq	$8, %rsi
	je	8f
	cmpq	$4, %rsi
	je	4f
	cmpq	$2, %rsi
	je	2f
	movb	(%rdi), %al
	jmp	done
2:	movw	(%rdi), %ax
	jmp	done
4:	movl	(%rdi), %eax
	jmp	done
8:	movq	(%rdi), %rax
	jmp	done

/* the rsi bytes at rdi = rdx */
entry guest_write
	xorl	%eax, %eax
	cmpq	$8, %rsi
	je	8f
	cmpq	$4, %rsi
	je	4f
	cmpq	$2, %rsi
	je	2f
	movb	%dl, (%rdi)
	jmp	done
2:	movw	%dx, (%rdi)
	jmp	done
4:	movl	%edx, (%rdi)
	jmp	done
8:	movq	%rdx, (%rdi)
	jmp	done

/* rax = *rdi, *rdi = rsi, at once */
entry guest_exchange
	movq	%rsi, %rax
	xchgq	%rax, (%rdi)
	jmp	done

/* rax = *rdi, *rdi += rsi, at once */
entry guest_add
	movq	%rsi, %rax
	lock xaddq %rax, (%rdi)
	jmp	done

/* result = 16 bytes at rdi; through memory, as KVM emulates no movq xmm */
entry guest_read16
	movdqu	(%rdi), %xmm0
	movdqu	%xmm0, %gs:AREA_RESULT
	jmp	finished

/* 16 bytes at rdi = rsi, rdx */
entry guest_write16
	movq	%rsi, %gs:AREA_RESULT
	movq	%rdx, %gs:AREA_RESULT + 8
	movdqu	%gs:AREA_RESULT, %xmm0
	movdqu	%xmm0, (%rdi)
	jmp	finished

/* rdx bytes from rsi to rdi */
entry guest_copy
	xorl	%eax, %eax
	movq	%rdx, %rcx
	cld
	rep movsb
	jmp	done

entry guest_fpu_save
	xorl	%eax, %eax
	fxsave	(%rdi)
	jmp	done

entry guest_fpu_restore
	xorl	%eax, %eax
	fxrstor	(%rdi)
	jmp	done

/* call the code at rdi with rax = rsi */
entry guest_jump
	movq	%rsi, %rax
	call	*%rdi
	jmp	done

/* count rdi down, in registers alone */
entry guest_spin
	xorl	%eax, %eax
1:	decq	%rdi
	jnz	1b
	jmp	done

/* hypercall rdi with rsi, rdx, rcx; KVM puts Intel's instruction in its place
 * where it has to */
entry guest_hypercall
	movq	%rdi, %rax
	movq	%rsi, %rbx
	xchgq	%rcx, %rdx
	xorl	%esi, %esi
	vmmcall
	jmp	done

/* the words at the rsi addresses at rdi; rdx: writes first */
entry guest_touch
	movabsq	$SCAN_MUL, %r13
	xorl	%eax, %eax
	testq	%rsi, %rsi
	jz	done
1:	movq	(%rdi), %rbx
	testq	%rdx, %rdx
	jz	2f
	movq	%rbx, 8(%rbx)
2:	rolq	$5, %rax
	xorq	(%rbx), %rax
	imulq	%r13, %rax
	addq	$8, %rdi
	decq	%rsi
	jnz	1b
	jmp	done

/*
 * The scan of machine.h.
 *	rbx page pointer	rcx word index		rax sum
 *	r8 page number p	r9 pages left		r10 pages
 *	r11 base		r12 stride		r13 SCAN_MUL
 */
entry guest_scan
	movq	%gs:SCAN_BASE, %r11
	movq	%gs:SCAN_PAGES, %r10
	movq	%gs:SCAN_FIRST, %r8
	movq	%gs:SCAN_STRIDE, %r12
	movq	%gs:SCAN_COUNT, %r9
	movabsq	$SCAN_MUL, %r13
	xorl	%eax, %eax
	testq	%r9, %r9
	jz	done

page:	movq	%r8, %rbx
	shlq	$12, %rbx
	addq	%r11, %rbx
	movabsq	$SCAN_SEED, %rax
	xorl	%ecx, %ecx
word:	rolq	$5, %rax
	xorq	(%rbx, %rcx, 8), %rax
	imulq	%r13, %rax
	incq	%rcx
	cmpq	$512, %rcx
	jne	word
	movq	%rax, 511 * 8(%rbx)

	movq	%r8, %rdx
	imulq	%r13, %rdx
	xorq	%rax, %rdx
	addq	%rdx, %gs:SCAN_CHECKSUM
	incq	%gs:SCAN_PROGRESS

	addq	%r12, %r8
	cmpq	%r10, %r8
	jb	1f
	subq	%r10, %r8
1:	decq	%r9
	jnz	page
	xorl	%eax, %eax
	jmp	done

/*
 * Timer interrupt, taken on the stack of the interrupted code and at its
 * privilege level. A trap gate leads here at CPL 3: iretq could not turn
 * interrupts on again, were they off. So on a host with too much to do the next
 * one may come right after the end of this one, and so on: who is interrupted in
 * these last two instructions is gone on with in place of a frame for each.
 */
entry guest_interrupt_user
	incq	%gs:AREA_INTERRUPTS
	jmp	0f

entry guest_tick_user
	incq	%gs:AREA_TICKS
0:	pushq	%rax
	leaq	tick_pop(%rip), %rax
	cmpq	%rax, 8(%rsp)
	je	2f
	leaq	tick_iret(%rip), %rax
	cmpq	%rax, 8(%rsp)
	je	3f
1:	movl	$APIC_EOI, %eax
	movl	$0, (%rax)
tick_pop:
	popq	%rax
tick_iret:
	iretq
2:	movq	32(%rsp), %rsp		/* its rax is on its stack */
	jmp	1b
3:	popq	%rax
	movq	24(%rsp), %rsp
	pushq	%rax
	jmp	1b

/*
 * The same at CPL 0, where KVM may have to emulate it and cannot do iretq:
 * rebuild rip, flags and rcx just below the interrupted rsp instead. Who is
 * interrupted in its last instruction has done it.
 */
entry guest_interrupt_supervisor
	incq	%gs:AREA_INTERRUPTS
	jmp	0f

entry guest_tick_supervisor
	incq	%gs:AREA_TICKS
0:	pushq	%rcx
	pushq	%rax
	movl	$APIC_EOI, %eax
	movl	$0, (%rax)
	pushq	%rdx
	movq	48(%rsp), %rcx		/* interrupted rsp */
	movq	24(%rsp), %rax		/* rip */
	leaq	tick_ret(%rip), %rdx
	cmpq	%rdx, %rax
	jne	1f
	movq	(%rcx), %rax
	addq	$8, %rcx
1:	movq	40(%rsp), %rdx		/* flags */
	movq	%rax, -8(%rcx)		/* over the frame, which is read */
	movq	%rdx, -16(%rcx)
	movq	16(%rsp), %rax		/* rcx */
	movq	%rax, -24(%rcx)
	popq	%rdx
	popq	%rax
	leaq	-24(%rcx), %rsp
	popq	%rcx
	popfq
tick_ret:
	ret

/*
 * Exceptions, 16 bytes for each vector. With page tables in shadow a back end
 * may tell a guest of page faults that it has not earned, and counts on what
 * every system does: the tables say that all is well, so the access is tried
 * again. So does this guest, whose tables never change. One that comes again
 * and again for the same instruction with the same registers is real. The same
 * for a double fault, which is what comes of a page fault that could not be
 * delivered: where KVM delivers it, it has changed nothing. All else ends the
 * guest.
 *
 * Interrupts stay on meanwhile, as for the timer's and for its reason: so there
 * is no stack of their own, which a null SS can come with that iretq would
 * refuse.
 */
#define DOUBLE_FAULT	8
#define PAGE_FAULT	14
#define WITH_ERROR	0x60227d00	/* bits: these push an error code */

/* Where the frame is. */
#define SAVED_RDX	0x00
#define SAVED_RAX	0x08
#define VECTOR		0x10
#define ERROR		0x18
#define RIP		0x20
#define CS		0x28
#define RFLAGS		0x30
#define RSP		0x38

	.balign	16
entry guest_faults
	.set	vector, 0
	.rept	32
	.balign	16
	.if	!(WITH_ERROR >> vector & 1)
	pushq	$0
	.endif
	pushq	$vector
	jmp	fault
	.set	vector, vector + 1
	.endr
	.balign	16

fault:	pushq	%rax
	pushq	%rdx
	cmpl	$PAGE_FAULT, VECTOR(%rsp)
	je	1f
	cmpl	$DOUBLE_FAULT, VECTOR(%rsp)
	jne	crash
1:	movq	RIP(%rsp), %rax
	.irp	reg, RSP(%rsp), SAVED_RAX(%rsp), SAVED_RDX(%rsp), %rbx, %rcx, \
		%rsi, %rdi, %rbp, %r8, %r9, %r10, %r11, %r12, %r13, %r14, %r15
	rolq	$7, %rax
	addq	\reg, %rax
	.endr
	cmpq	%gs:FAULT_STATE, %rax
	movq	%rax, %gs:FAULT_STATE
	je	2f
	movq	$0, %gs:FAULT_SAME
2:	incq	%gs:FAULT_SAME
	movq	%gs:FAULT_SAME, %rax
	cmpq	%gs:FAULT_TRIES, %rax
	ja	crash
	incq	%gs:FAULT_RETRIED
	testb	$3, CS(%rsp)
	jz	3f
	popq	%rdx
	popq	%rax
	addq	$16, %rsp
	iretq
3:	movq	RSP(%rsp), %rax		/* no iretq here either */
	movq	RIP(%rsp), %rdx
	movq	%rdx, -8(%rax)		/* over the frame, which is read */
	movq	RFLAGS(%rsp), %rdx
	movq	%rdx, -16(%rax)
	movq	SAVED_RAX(%rsp), %rdx
	movq	%rdx, -24(%rax)
	popq	%rdx
	leaq	-24(%rax), %rsp
	popq	%rax
	popfq
	ret

/* Not meant to be run on from. */
crash:	movq	VECTOR(%rsp), %rax
	movq	%rax, %gs:FAULT_VECTOR
	movq	ERROR(%rsp), %rax
	movq	%rax, %gs:FAULT_ERROR
	movq	RIP(%rsp), %rax
	movq	%rax, %gs:FAULT_RIP
	movq	RFLAGS(%rsp), %rax
	movq	%rax, %gs:FAULT_RFLAGS
	movq	RSP(%rsp), %rax
	movq	%rax, %gs:FAULT_RSP
crashed:
	outb	%al, $CRASHED_PORT
	jmp	crashed

entry guest_end

	.section .note.GNU-stack, "", @progbits
