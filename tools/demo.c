/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault demo: real vCPUs run out of an image that is brought in page by page
 * as they touch it, and the proof that they saw all of it.
 */

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "demo.h"
#include "tool.h"

#define TICK_NS 50000000L

void demo_fail(struct demo *demo, const char *format, ...)
{
	char line[512];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (!atomic_exchange(&demo->failed, true))
		complain("%s", line);
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

void demo_job(struct demo_vcpu *vcpu, uint64_t first, uint64_t pages)
{
	/* The golden section scatters best. */
	uint64_t stride = (uint64_t)((double)pages * 0.6180339887) | 1;

	while (gcd(stride, pages) != 1)
		stride++;
	*vcpu->job = (struct machine_scan){
		.base = DEMO_RAM + first * DEMO_PAGE,
		.pages = pages,
		.stride = stride % pages,
		.count = pages,
	};
}

static void log_line(void *data, enum kvmfault_log_level level,
		     const char *message)
{
	(void)data;
	complain("%s%s", level == KVMFAULT_LOG_WARNING ? "warning: " : "",
		 message);
}

/* A vCPU sleeps in the kernel on a page that can't be had. */
static void unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	demo_fail(data, "a vCPU's %s can't go on: %s (%s)",
		  kvmfault_access_str(sleeper->fault->access),
		  kvmfault_reason_str(sleeper->reason),
		  strerror(-sleeper->error));
}

/* The whole run loop. */
static void run(struct demo_vcpu *vcpu)
{
	const struct kvmfault_result *result;
	const struct kvmfault_fault *fault;
	struct demo *demo = vcpu->demo;
	char story[MACHINE_STORY];
	int ret = 0, err = 0;
	bool enter = true;

	while (!atomic_load(&demo->failed)) {
		if (enter) {
			ret = ioctl(vcpu->machine->fd, KVM_RUN, 0);
			err = errno;
		}
		enter = true;
		switch (kvmfault_vcpu_handle(vcpu->handle, ret, err)) {
		case KVMFAULT_ACTION_RETRY:
		case KVMFAULT_ACTION_INTERRUPTED:
		case KVMFAULT_ACTION_PENDING:
			continue;
		case KVMFAULT_ACTION_UNFINISHED:
		case KVMFAULT_ACTION_PENDING_UNFINISHED:
			enter = false;	/* an access is half done */
			continue;
		case KVMFAULT_ACTION_NOT_A_FAULT:
			if (machine_done(vcpu->machine, ret))
				return;
			demo_fail(demo, "vCPU %u left the guest unexpectedly: %s",
				  vcpu->machine->id,
				  machine_story(vcpu->machine, story));
			return;
		case KVMFAULT_ACTION_UNRESOLVED:
			result = kvmfault_vcpu_result(vcpu->handle);
			fault = result->fault;
			demo_fail(demo, "vCPU %u: %s at %#llx: %s (%s)",
				  vcpu->machine->id,
				  kvmfault_kind_str(fault->kind),
				  (unsigned long long)fault->gpa,
				  kvmfault_reason_str(result->reason),
				  strerror(-result->error));
			return;
		}
	}
}

double demo_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void *vcpu_thread(void *arg)
{
	struct demo_vcpu *vcpu = arg;

	vcpu->began = demo_now();
	run(vcpu);
	vcpu->ended = demo_now();
	atomic_fetch_add(&vcpu->demo->finished, 1);
	return NULL;
}

static uint64_t progress(const struct demo *demo)
{
	uint64_t done = 0;
	unsigned int i;

	for (i = 0; i < demo->vcpus; i++)
		done += __atomic_load_n(&demo->vcpu[i].job->progress,
					__ATOMIC_RELAXED);
	return done;
}

static void kick(int signal)
{
	(void)signal;	/* only there to end KVM_RUN */
}

static void stop(struct demo *demo, const struct demo_scenario *scenario)
{
	unsigned int i;

	scenario->release(demo);
	for (i = 0; i < demo->started; i++)
		pthread_kill(demo->vcpu[i].thread, SIGUSR1);
}

static void run_all(struct demo *demo, const struct demo_scenario *scenario)
{
	const struct timespec tick = { .tv_nsec = TICK_NS };
	double began = demo_now(), ended = 0;
	unsigned int i;

	restore_begin(demo);
	for (i = 0; i < demo->vcpus && !atomic_load(&demo->failed); i++) {
		struct demo_vcpu *vcpu = &demo->vcpu[i];
		int err = pthread_create(&vcpu->thread, NULL, vcpu_thread,
					 vcpu);

		if (err) {
			demo_fail(demo, "cannot start a thread: %s",
				  strerror(err));
			break;
		}
		demo->started++;
	}
	while (atomic_load(&demo->finished) < demo->started) {
		report_progress(demo, progress(demo));
		restore_tick(demo);
		if (atomic_load(&demo->failed))
			stop(demo, scenario);
		nanosleep(&tick, NULL);
	}
	for (i = 0; i < demo->started; i++) {
		pthread_join(demo->vcpu[i].thread, NULL);
		if (demo->vcpu[i].ended > ended)
			ended = demo->vcpu[i].ended;
	}
	demo->seconds = ended - began;
	demo->touched = ended - demo->began;
	report_progress(demo, progress(demo));
	report_end_progress(demo);
}

static int set_up(struct demo *demo, const struct demo_scenario *scenario)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.log = log_line,
		.unresolved = unresolved,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.ops = &ops,
		.data = demo,
		.delivery = demo->wanted,
		/* The guest's page tables are in its control memory, which is
		 * always present: it does not matter who walks them. */
		.allow = KVMFAULT_ALLOW_MARKER_EXIT |
			 KVMFAULT_ALLOW_SHADOW_PAGING,
		.kvm_fd = demo->machine->kvm_fd,
	};
	unsigned int i;
	int err;

	err = kvmfault_vm_new(&options, &demo->vm);
	for (i = 0; i < demo->vcpus && !err; i++) {
		demo->vcpu[i].demo = demo;
		demo->vcpu[i].machine = &demo->machine->vcpu[i];
		demo->vcpu[i].job = machine_scan_job(demo->machine, i);
	}
	if (!err)
		err = scenario->set_up(demo);
	for (i = 0; i < demo->vcpus && !err; i++) {
		struct kvmfault_vcpu_options vcpu = {
			.size = sizeof(vcpu),
			.fd = demo->vcpu[i].machine->fd,
			.run = demo->vcpu[i].machine->run,
		};

		err = kvmfault_vcpu_new(demo->vm, &vcpu, &demo->vcpu[i].handle);
		if (!err)
			err = machine_call(demo->vcpu[i].machine, MACHINE_SCAN,
					   0, 0, 0, 0);
	}
	if (err)
		complain_errno(err, "set the guest up");
	return err;
}

static int verify(struct demo *demo, const struct demo_scenario *scenario)
{
	uint64_t expected = 0, got = 0;
	unsigned int i;
	int err;

	err = scenario->compare(demo, &expected);
	if (err) {
		complain_errno(err, "compare RAM with the image");
		return err;
	}
	for (i = 0; i < demo->vcpus; i++)
		got += demo->vcpu[i].job->checksum;
	demo->wrong_checksums = got != expected;
	demo->misread = image_misread(&demo->image);
	demo->verified = !demo->misread && !demo->wrong_pages &&
			 !demo->wrong_checksums &&
			 demo->fetched + demo->zero == demo->image.pages &&
			 demo->settled == demo->settle;
	return 0;
}

static void take_down(struct demo *demo, const struct demo_scenario *scenario)
{
	unsigned int i;

	for (i = 0; i < demo->vcpus; i++)
		kvmfault_vcpu_free(demo->vcpu[i].handle);
	if (demo->vm)
		scenario->take_down(demo);
	if (kvmfault_vm_free(demo->vm))
		complain("something of the context is left");
	kvmfault_working_set_free(demo->set);
	machine_free(demo->machine);
	image_close(&demo->image);
}

static int new_machine(struct demo *demo)
{
	struct machine_options options = {
		.vcpus = demo->vcpus,
		.irqchip = !demo->no_irqchip,
		.timer = !demo->no_irqchip,
		.span = DEMO_RAM + demo->bytes,
	};
	int err = machine_new(&options, &demo->machine);

	if (err == -ENOENT || err == -EACCES || err == -EPERM)
		complain("cannot open /dev/kvm: %s; load kvm_intel or kvm_amd, switch virtualisation on in the firmware (in a VM: nested virtualisation), and be in the device's group",
			 strerror(-err));
	else if (err)
		complain_errno(err, "create a VM");
	return err;
}

static int demo_run(struct demo *demo, const struct demo_scenario *scenario)
{
	struct sigaction action = { .sa_handler = kick };
	sigset_t bus;
	int err;

	sigaction(SIGUSR1, &action, NULL);
	/* The library takes it where it is to be taken: all threads inherit
	 * this. */
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	pthread_sigmask(SIG_BLOCK, &bus, NULL);
	err = new_machine(demo);
	if (!err)
		err = image_open(&demo->image, &demo->place, demo->bytes,
				 demo->holes);
	if (!err)
		err = restore_match(demo);
	demo->began = demo_now();
	if (!err)
		err = set_up(demo, scenario);
	if (!err)
		run_all(demo, scenario);
	if (!err && !atomic_load(&demo->failed))
		err = restore_end(demo);
	if (!err && !atomic_load(&demo->failed))
		err = verify(demo, scenario);
	if (!err && !atomic_load(&demo->failed)) {
		if (demo->json)
			report_json(demo);
		else
			report_table(demo);
	}
	take_down(demo, scenario);
	return demo->verified ? EXIT_OK : EXIT_FAILED;
}

int cmd_demo(int argc, char **argv)
{
	const struct demo_scenario *scenario;
	struct demo *demo = calloc(1, sizeof(*demo));
	int code;

	if (!demo) {
		complain_errno(-ENOMEM, "start");
		return EXIT_FAILED;
	}
	code = demo_options(argc, argv, demo, &scenario);
	if (code < 0)
		code = demo_run(demo, scenario);
	free(demo);
	return code;
}
