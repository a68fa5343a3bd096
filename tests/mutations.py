#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""Break the library on purpose, one line at a time, and see that a test fails.

Each mutation names its file, what stands there, what is put in its place, and
the test programs of which at least one must notice. One whose text is not
found exactly once is a failure: it has to follow the code.

usage: mutations.py SOURCE [--only NAME]...

Works in a copy of the tree; takes a few seconds for each mutation.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

MUTATIONS = [
    # name, file, from, to, tests
    ('drop the wake of who was marked as asleep', 'lib/resolve.c',
     '		wake = true;	/* a reader marked it, or a discard */',
     '		wake = false;', ['resolve', 'mapping']),
    ('drop the wake of who waits on a futex', 'lib/resolve.c',
     '	kvmfault__page_wake(memory, page);\n	if (wake)',
     '	if (wake)', ['waits']),
    ('drop the wake of the mapping that a message came from',
     'lib/resolve.c',
     '	else if (rq->origin && (!rq->installed || rq->existed ||\n'
     '				!rq->origin->memslots))',
     '	else if (rq->origin && !rq->installed)', ['resolve', 'mapping']),
    ('swap the order: the state before the data', 'lib/resolve.c',
     '	judge(rq, ask(rq, &answer), &answer);\n	answer.came =',
     '	kvmfault__page_change(rq->request.memory, page,\n'
     '			      KVMFAULT__FETCHING, KVMFAULT__PRESENT);\n'
     '	judge(rq, ask(rq, &answer), &answer);\n	answer.came =',
     ['resolve']),
    ('take EEXIST for a failure', 'lib/resolver.c',
     '	ours->installed = !err || err == -EEXIST;',
     '	ours->installed = !err;', ['resolver', 'resolve']),
    ('do not wake after EEXIST', 'lib/resolve.c',
     '(!rq->installed || rq->existed ||', '(!rq->installed ||', ['resolve']),
    ('ignore a partial copy', 'lib/uffd.c',
     '		if (copy.copy <= 0)\n			return err;',
     '		return err;', ['uffd']),
    ('take -EAGAIN in the copied field for progress', 'lib/uffd.c',
     '		if (copy.copy <= 0)\n			return err;',
     '		if (!copy.copy)\n			return err;', ['uffd']),
    ('forget the waiter bit', 'lib/page.c',
     '			to = KVMFAULT__FETCHING_WAITED;',
     '			to = KVMFAULT__FETCHING;', ['page', 'resolve']),
    ('two threads fetch one page', 'lib/page.c',
     '		if (state == KVMFAULT__ABSENT || state == KVMFAULT__REMOVED)',
     '		if (state <= KVMFAULT__FETCHING ||\n'
     '		    state == KVMFAULT__REMOVED)', ['page', 'resolve']),
    ('a failed fetch leaves the page present', 'lib/resolve.c',
     'answer.came ? KVMFAULT__PRESENT : was);',
     'KVMFAULT__PRESENT);', ['resolve']),
    ('a discarded page comes from the source again', 'lib/resolver.c',
     '	if (request->page == KVMFAULT_PAGE_REMOVED) {',
     '	if (request->page == KVMFAULT_PAGE_PRESENT) {',
     ['resolver', 'range', 'resolve']),
    ('a discard during a fetch is forgotten', 'lib/resolve.c',
     '		if (discarded(rq, page, to))\n			break;',
     '', ['errnos']),
    ('a discard does not wait for the fetch', 'lib/range.c',
     '			err = kvmfault__page_wait(seat, memory, page + done);',
     '			err = 0;\n			done++;',
     ['range', 'errnos', 'resolve']),
    ('believe who says resolved', 'lib/resolve.c',
     '	if (answer.came && lied(rq)) {', '	if (0 && lied(rq)) {',
     ['resolver', 'resolve']),
    ('believe a stale record', 'lib/decode.c',
     '	if (err != EFAULT && err != EHWPOISON)\n		return;\n',
     '	if (!err)\n		return;\n', ['decode']),
    ('do not align the gpa', 'lib/decode.c',
     '	fault->gpa = gpa & ~mask;', '	fault->gpa = gpa;',
     ['decode']),
    ('let flags pass that nobody understands', 'lib/resolve.c',
     '		if (request->fault->flags & ~r->flags) {',
     '		if (0) {', ['resolver', 'resolve']),
    ('retry for ever', 'lib/vcpu.c',
     '	if (++vcpu->streak >= vcpu->vm->options.retry_budget) {',
     '	if (0) {', ['vcpu']),
    ('a signal counts as progress', 'lib/vcpu.c',
     '	/* A signal is no progress: a timer must not keep a spin alive. */',
     '	start_guard(vcpu);', ['vcpu']),
    ('go on after an access that was lost', 'lib/vcpu.c',
     '	if (lost_mmio(vcpu)) {', '	if (0 && lost_mmio(vcpu)) {',
     ['vcpu', 'mmio']),
    ('complete an access to ROM', 'lib/mmio.c',
     '	       !(vcpu->run->mmio.is_write &&\n'
     '		 region->info.flags & KVMFAULT_REGION_READONLY);',
     '	       true;', ['mmio']),
    ('free what a reader holds', 'lib/seat.c',
     '		if (held(vm, item)) {', '		if (0 && held(vm, item)) {',
     ['seat', 'region']),
    ('do not wait for a fetch before memory is freed', 'lib/memory.c',
     '	kvmfault__drain(vm, serves, memory);', '', ['memory']),
    ('leave absent pages readable at the end', 'lib/mapping.c',
     '	err = guard ? fail_closed(mapping) : 0;', '	err = 0;',
     ['memory', 'mapping']),
    ('take preallocated memory for empty', 'lib/memory.c',
     '	return -EEXIST;', '	return 0;', ['memory', 'live-uffd']),
    ('forget a fault that has to wait', 'lib/service.c',
     '		service->parked[service->parked_count++] = *item;',
     '		;', ['service']),
    ('try what is parked again at once', 'lib/service.c',
     '		if (service->parked[i].due > now)\n			continue;',
     '', ['service']),
    ('register before the mapping is known', 'lib/mapping.c',
     '	atomic_store(&memory->mappings, new);\n	if (mapping->uffd)\n'
     '		err = kvmfault__uffd_register(mapping->uffd, mapping->host,\n'
     '					      memory->length);',
     '	if (mapping->uffd)\n'
     '		err = kvmfault__uffd_register(mapping->uffd, mapping->host,\n'
     '					      memory->length);\n'
     '	atomic_store(&memory->mappings, new);', ['mapping']),
    ('a wait that a signal ends says that the page came', 'lib/page.c',
     '	atomic_fetch_sub(&b->waiters, 1);\n	return err;',
     '	atomic_fetch_sub(&b->waiters, 1);\n	return 0;',
     ['page', 'waits']),
    ('a message of another process taken for a repeated one',
     'lib/service.c', '		if (service->parked[i].space == space &&\n'
     '		    service->parked[i].fault.hva == hva)',
     '		if (space < KVMFAULT__SPACES &&\n'
     '		    service->parked[i].fault.hva == hva)', ['service']),
    ('an allocation on the fault path', 'lib/resolver-copy.c',
     '	err = kvmfault_request_read(request, request->buffer);',
     '	kvmfault__sys_free(kvmfault__sys_alloc(1, 0));\n'
     '	err = kvmfault_request_read(request, request->buffer);', ['path']),
    ('a lock held across the copy', 'lib/service.c',
     '	answer = kvmfault__resolve(seat, &item->fault, NULL, mapping,\n'
     '				   item->fault.hva - mapping->host);',
     '	kvmfault__sys_lock(&service->lock);\n'
     '	answer = kvmfault__resolve(seat, &item->fault, NULL, mapping,\n'
     '				   item->fault.hva - mapping->host);\n'
     '	kvmfault__sys_unlock(&service->lock);', ['path']),
]


def mutate(tree, mutation):
    _, path, old, new, _ = mutation
    path = os.path.join(tree, path)
    with open(path) as file:
        text = file.read()
    if text.count(old) != 1:
        return None
    with open(path, 'w') as file:
        file.write(text.replace(old, new))
    return lambda: open(path, 'w').write(text)


def caught(build, tests):
    """The test that fails, or None. One that does not build is no catch."""
    programs = ['tests/test-' + test for test in tests]
    done = subprocess.run(['ninja', '-C', build, *programs],
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'does not build:\n{done.stdout[-2000:]}')
    # What a mutation makes hang is found soon.
    environment = dict(os.environ, CK_TIMEOUT_MULTIPLIER='0.3')
    for test, program in zip(tests, programs):
        done = subprocess.Popen([os.path.join(build, program)],
                                env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)
        try:
            done.wait(300)
        except subprocess.TimeoutExpired:
            done.terminate()	# Check ends its child then; killed it can't
            done.wait()
            return test + ' (hangs)'
        if done.returncode not in (0, 77):
            return test
    return None


def copy(source, work):
    tree = os.path.join(work, 'tree')
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(
        'build*', '.git', 'fuzz-*'))
    build = os.path.join(work, 'build')
    subprocess.run(['meson', 'setup', '-Dtools=disabled', build, tree],
                   check=True, stdout=subprocess.DEVNULL)
    return tree, build


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('source')
    parser.add_argument('--only', action='append')
    options = parser.parse_args()
    missed = 0

    with tempfile.TemporaryDirectory() as work:
        tree, build = copy(options.source, work)
        # Without a mutation they pass: what fails then, fails for it.
        tests = sorted({test for m in MUTATIONS for test in m[4]})
        if caught(build, tests):
            sys.exit('a test fails without any mutation')
        for mutation in MUTATIONS:
            if options.only and mutation[0] not in options.only:
                continue
            undo = mutate(tree, mutation)
            test = undo and caught(build, mutation[4])
            if undo:
                undo()
            missed += not test
            print(f'{"ok" if test else "MISSED"}: {mutation[0]}: '
                  f'{test or ("no test" if undo else "text not found")}',
                  flush=True)
    print(f'{missed} missed')
    sys.exit(bool(missed))


main()
