#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""Break the library on purpose, one line at a time, and see that a test fails.

Each mutation names its file, what stands there, what is put in its place, and
the test programs that must notice, every one of them: so the list says which
test guards what. 'waits hangs' means that the program waits for ever then. If
one hangs that is not said to, that is no success: it may be slow. 'fails/hangs'
is for what goes on for very long, and not for ever.

A failure, too: a text that is not found exactly once (it has to follow the
code), and a mutation that does not compile, which no test would have to notice.
Twins, which are wrong in each of these ways, have to be found wrong.

With --simulate it asks the simulator (tests/sim) instead of the tests, which
looks for a failure that is not known for so many seconds each, with so many jobs
(2), and succeeds if that finds four of five. With --seeds for no more than so many
runs, too: the same ones on a machine that is busy.

usage: mutations.py SOURCE [--simulate SECONDS [--jobs N] [--seeds N]]
                    [--only NAME]... [--part K N]

With --part it takes each N-th, from the K-th on: so several run side by side.

Works in a copy of the tree; takes about a second for each mutation, with
--simulate some more, and all the time that is given for what is not found.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MUTATIONS = [
    # name, file, from, to, tests
    ('drop the wake of who was marked as asleep', 'lib/resolve/publish.c',
     '	if (flagged)\n', '	if (0)\n', ['resolve', 'mapping']),
    ('drop the wake of who waits on a futex', 'lib/resolve/publish.c',
     '	kvmfault__page_wake(memory, page);\n}', '}', ['waits hangs']),
    ('drop the wake of the mapping that a message came from',
     'lib/resolve/publish.c',
     ' || rq->own_way ||\n'
     '		  installed->existed || !rq->origin->memslots))',
     '))', ['resolve', 'mapping']),
    ('swap the order: the state before the data', 'lib/resolve/resolve.c',
     '	if (page < 0)\n		resolve_unknown',
     '	kvmfault__page_change(rq->request.memory, rq->page,\n'
     '			      KVMFAULT__FETCHING, KVMFAULT__PRESENT);\n'
     '	if (page < 0)\n		resolve_unknown',
     ['resolve hangs']),
    ('take EEXIST for a failure', 'lib/memory/install.c',
     '		existed = done == -EEXIST;\n', '		existed = false;\n',
     ['resolve']),
    ('do not wake after EEXIST', 'lib/resolve/publish.c',
     '		  installed->existed || ', '		  ',
     ['resolve']),
    ('a private mapping of the file will do', 'lib/memory/maps.c',
     "	if (line->shared != 's')", '	if (0)', ['maps']),
    ('any part of the file will do', 'lib/memory/maps.c',
     '	if (line->offset - line->start != memory->fd_offset - host)',
     '	if (0)', ['maps']),
    ('adopt what hears nothing of the kernel', 'lib/setup/userfaultfds.c',
     '	return access.err == -EFAULT ? -EFAULT : 0;', '	return 0;', ['uffd']),
    ('read messages as the descriptor says', 'lib/kernel/uffd.c',
     'kvmfault__sys_read_now(fd, messages, size);',
     'kvmfault__sys_read(fd, messages, size);', ['uffd']),
    ('read a message that may be withdrawn', 'lib/kernel/uffd.c',
     '	if (!kvmfault__sys_readable(fd))\n', '	if (0)\n', ['uffd']),
    ('a marker of a failed page stays in another process', 'lib/memory/install.c',
     '			install_unpoison_remote(seat, mapping, offset) :',
     '			0 :',
     ['mapping']),
    ('what took the place of a marker stays', 'lib/memory/install.c',
     '	punched = kvmfault__memory_punch(memory, offset, size);',
     '	punched = 0;', ['mapping']),
    ('the state that an SMI saves is in the ordinary memory',
     'lib/entry/paravirt.c', '.space = 1, ', '', ['paravirt']),
    ('a TSS of 64 bits has three stacks', 'lib/entry/walk.c',
     'wide ? sizeof(stacks) : 3', '3', ['walk']),
    ('close the descriptor of what mremap() has moved', 'lib/setup/userfaultfds.c',
     ' || atomic_load(&uffd->moved);', ';', ['service']),
    ('a sleeper of another process is one of ours', 'lib/resolve/defer.c',
     'mapping->uffd->own ? NULL : mapping->uffd', 'NULL', ['service']),
    ('ignore a partial copy', 'lib/kernel/uffd.c',
     '	return count > 0 ? count : err;', '	return err;', ['uffd']),
    ('show what was cut off in the middle of a page', 'lib/resolve/request.c',
     '	if (!kvmfault__source_reaches(source, offset + ', '	if (0 && (',
     ['resolver']),
    ('install a view past the file', 'lib/resolve/request.c',
     '	if (!source->view || memory->fill ||', '	if (!source->view ||',
     ['resolver']),
    ('the source shows what a discarded page holds', 'lib/resolve/request.c',
     ' ||\n	    rq->request.page != KVMFAULT_PAGE_ABSENT)', ')',
     ['resolver']),
    ('a view that is gone is not the source\'s failure', 'lib/resolve/request.c',
     '		ours->source_failed = err;', '		;', ['resolver']),
    ('a neighbour that is gone fails the page', 'lib/resolve/request.c',
     '		if (ours->count > 1 && !kvmfault__has_come(ours))',
     '		if (0)', ['resolver']),
    ('what came before a neighbour that is gone is forgotten',
     'lib/resolve/window.c',
     '	kvmfault__release(rq, first, came, KVMFAULT__PRESENT);',
     '	kvmfault__release(rq, first, came, KVMFAULT__ABSENT);',
     ['resolver']),
    ('look for a message for ever', 'lib/core/poll.c',
     ' &&\n	       poll->looked - poll->began < poll->limit', '', ['poll']),
    ('look for a message where another wants the CPU', 'lib/core/poll.c',
     'poll->looked - before < YIELD_CONTENDED_NS &&\n', '\n', ['poll']),
    ('look for a message however often in vain', 'lib/core/poll.c',
     '	poll->skip = 1U << poll->vain;\n', '', ['poll']),
    ('pages come without protection', 'lib/memory/install.c',
     '		page++;\n	return page < end;', '		page++;\n	return false;',
     ['protect']),
    ('protect does not wait for who has the page', 'lib/resolve/protect.c',
     '	while (!err && kvmfault__word_protect(memory, page, 1))\n'
     '		err = kvmfault__page_wait(seat, memory, page);\n',
     '	kvmfault__word_protect(memory, page, 1);\n', ['protect hangs']),
    ('protect leaves the bit to who had the page', 'lib/resolve/protect.c',
     '	while (!err && kvmfault__word_protect(memory, page, 1))\n',
     '	if (kvmfault__word_protect(memory, page, 1))\n',
     ['protect']),
    ('protect gives the bit to who has the page', 'lib/memory/page.c',
     '		busy = pages & page_mask_in_flight(old);\n', '		busy = 0;\n',
     ['page', 'protect hangs']),
    ('protect only what it can at once', 'lib/resolve/protect.c',
     '	if (!err)\n		err = protect_wait_busy(&busy);\n', '', ['protect hangs']),
    ('protect only what is mapped first', 'lib/memory/install.c',
     '		int err = install_protect_one(all->mapping[i], offset,',
     '		int err = install_protect_one(all->mapping[0], offset,', ['protect']),
    ('lift protection only where somebody sleeps', 'lib/resolve/present.c',
     '	err = kvmfault__protect(rq->seat, memory, NULL, rq->request.offset,',
     '	err = kvmfault__protect(rq->seat, memory, rq->origin, rq->request.offset,',
     ['protect']),
    ('save a page twice', 'lib/resolve/present.c',
     '	if (kvmfault__must_save(rq))\n		present_save_page(rq, answer);',
     '	present_save_page(rq, answer);', ['protect']),
    ('write a page that was not saved', 'lib/resolve/present.c',
     '	if (answer->action != KVMFAULT_ACTION_RETRY || answer->error)\n		return;\n'
     '	kvmfault__page_unprotect',
     '	kvmfault__page_unprotect', ['protect']),
    ('write a page that has just come', 'lib/resolve/resolve.c',
     '			if (!answer->came || !(kvmfault__must_save(rq) ||\n'
     '					       kvmfault__touched(rq)))',
     '			if (1)', ['protect']),
    ('forget what the kernel alone protects', 'lib/resolve/present.c',
     '		    kvmfault__may_write(rq->request.fault) &&',
     '		    0 &&', ['protect']),
    ('poison over the marker of a protection', 'lib/memory/install.c',
     '	if (memory->write_protect)\n		err = kvmfault__uffd_protect',
     '	if (0)\n		err = kvmfault__uffd_protect', ['protect']),
    ('nobody reads what the library takes away', 'lib/memory/events.c',
     '	if (reader)\n		kvmfault__reader_want(reader);', '	;',
     ['live-events hangs']),
    ('forget that a message was read without a service', 'lib/setup/event-reader.c',
     '		atomic_store(&vm->unserved, true);\n', '',
     ['live-events hangs']),
    ('who only reads waits until the page is saved', 'lib/resolve/resolve.c',
     '		resolve_show_protected(rq);\n', '', ['protect']),
    ('take what marks a protection for a page', 'lib/memory/install.c',
     '		err = kvmfault__uffd_protect(fd, mapping->host + offset, length,',
     '		kvmfault__uffd_protect(fd, mapping->host + offset, length,',
     ['mapping']),
    ('map a page that nobody holds', 'lib/resolve/present.c',
     '	if (!present_claim_page(rq))\n		return false;\n'
     '	err = present_install_again(rq);',
     '	kvmfault__run(rq, rq->page, 1);\n	err = present_install_again(rq);',
     ['protect']),
    ('have a hook wait for the page that it saves', 'lib/resolve/present.c',
     '	if (memory->fill)\n		rq->request.host =',
     '	if (0)\n		rq->request.host =', ['protect']),
    ('discard what was not saved', 'lib/resolve/range.c',
     '		if (save && discard_must_save(memory, page + n, state))\n			break;\n',
     '', ['protect']),
    ('discard what is protected just then', 'lib/resolve/range.c',
     '		if (save && discard_must_save(memory, page + n, state)) {',
     '		if (0) {', ['protect']),
    ('do not protect a mapping that comes later', 'lib/setup/mappings.c',
     '	err = mapping_write_protect(*mapping);', '	err = 0;', ['protect']),
    ('lift the protection of pages that nobody holds', 'lib/resolve/protect.c',
     '	       kvmfault__page_change(memory, page + n, *was,\n'
     '				     KVMFAULT__FETCHING) == *was)',
     '	       1)', ['protect hangs']),
    ('take up a page that may be half a page', 'lib/setup/import.c',
     '	if (import->there && !import_needs_no_look(import, page))',
     '	if (import->there)', ['live-import']),
    ('take up what was discarded as absent', 'lib/setup/import.c',
     '	return kvmfault__bit(import->memory->unsourced, page) ?\n'
     '	       KVMFAULT__DISCARDED : KVMFAULT__ABSENT;',
     '	return KVMFAULT__ABSENT;', ['live-import']),
    ('believe a state without its page', 'lib/setup/import.c',
     '	if (state > KVMFAULT__POISONED) {',
     '	if (state == KVMFAULT__PRESENT) {\n'
     '		return 0;\n'
     '	} else if (state > KVMFAULT__POISONED) {', ['live-import']),
    ('a discard that was cut short leaves its page', 'lib/setup/import.c',
     '	if (state > KVMFAULT__PRESENT && import->there) {',
     '	if (0) {', ['live-import']),
    ('what came after a discard is lost', 'lib/setup/import.c',
     '	if (state == KVMFAULT__DISCARDED && import->there)\n',
     '	if (0)\n', ['live-import']),
    ('change states, then refuse them', 'lib/setup/import.c',
     '	err = import_pages(&import, false);\n	if (!err)\n',
     '', ['live-import']),
    ('take up a preallocated page', 'lib/setup/memories.c',
     '	return more <= 0 ? more : kvmfault__refuse(',
     '	return 1 ? 0 : kvmfault__refuse(', ['live-import']),
    ('half a page of an owner with minor faults', 'lib/setup/states-file.c',
     '	if (is->minor != ours->minor)', '	if (0)', ['live-import']),
    ('the states count while a memory is settled', 'lib/setup/settle.c',
     '	kvmfault__pages_settle(memory);\n', '',
     ['live-import']),
    ('a lost page is zero to the next owner', 'lib/memory/page.c',
     ' && to != KVMFAULT__POISONED;', ';', ['live-import']),
    ('a message that a dead owner has read', 'lib/setup/mappings.c',
     '	if (memory->states_file && !own && uffd)', '	if (0)',
     ['live-device hangs']),
    ('the protection of a dead owner stays', 'lib/resolve/present.c',
     '	bool lift = (memory->write_protect || memory->states_file) &&',
     '	bool lift = memory->write_protect &&', ['live-device hangs']),
    ('mark what the next owner will serve', 'lib/setup/mappings.c',
     '	return memory->states_file && mapping->uffd->space &&\n',
     '	return 0 &&\n', ['live-device']),
    ('take up the protection of a snapshot that is gone',
     'lib/setup/import.c',
     '	if (kvmfault__page_protected(memory, page))\n',
     '	if (0)\n', ['live-import']),
    ('an absent page keeps its bit', 'lib/setup/import.c',
     '	if (state == KVMFAULT__ABSENT &&', '	if (0 &&', ['live-import']),
    ('the states of another file', 'lib/setup/states-file.c',
     '	if (is->device != ours->device || is->inode != ours->inode)',
     '	if (0)', ['live-import']),
    ('the states of another place in the source', 'lib/setup/states-file.c',
     '	if (is->source_offset != ours->source_offset ||',
     '	if (', ['live-import']),
    ('states that were not begun count', 'lib/setup/states-file.c',
     '	memset(memory->states_file, 0, memory->states_size);\n', '',
     ['live-import']),
    ('what was settled is tracked again', 'lib/memory/page.c',
     '		atomic_store(&memory->states_file->settled, 1);',
     '		;', ['live-import']),
    ('a page has come and is the source\'s still', 'lib/memory/page.c',
     '	return memory->unsourced && kvmfault__in_flight(from) &&',
     '	return 0 && kvmfault__in_flight(from) &&', ['live-import']),
    ('a mapped page may be called half a page', 'lib/memory/install.c',
     '	if (!err)\n		kvmfault__pages_note(',
     '	if (0)\n		kvmfault__pages_note(', ['live-killed']),
    ('neighbours of the VMM\'s come from the source', 'lib/resolve/window.c',
     '	if (window_others_were_asked(rq))\n		return;\n', '',
     ['window']),
    ('forget the waiter bit', 'lib/memory/page.c',
     '		return KVMFAULT__FETCHING_WAITED;',
     '		return state;', ['page', 'resolve']),
    ('a run goes over a page that is not alike', 'lib/memory/page.c',
     '		page += alike;\n		if (alike < step)\n			break;',
     '		page += step;', ['page']),
    ('a run takes what is in another state', 'lib/memory/page.c',
     'other ? (unsigned int)__builtin_ctzll(other) /\n'
     '				KVMFAULT__PAGE_BITS : count;', 'count;',
     ['page']),
    ('publish a run and forget who waits', 'lib/resolve/publish.c',
     '	for (; page < first + done; page++)\n		publish_tell_page(memory, page);',
     '	page += done;', ['waits hangs']),
    ('two threads fetch one page', 'lib/memory/page.c',
     '	if (state == KVMFAULT__ABSENT || state == KVMFAULT__DISCARDED)',
     '	if (state <= KVMFAULT__FETCHING || state == KVMFAULT__DISCARDED)',
     ['page', 'resolve']),
    ('a failed fetch leaves the page present', 'lib/resolve/publish.c',
     'rq->count - there,\n				       was);',
     'rq->count - there,\n				       KVMFAULT__PRESENT);',
     ['resolve']),
    ('a discarded page comes from the source again', 'lib/resolve/request.c',
     '	if (rq->request.page == KVMFAULT_PAGE_ABSENT)\n		return request_read',
     '	if (rq->request.page != KVMFAULT_PAGE_PRESENT)\n		return request_read',
     ['resolver']),
    ('a discard during a fetch is forgotten', 'lib/resolve/publish.c',
     '	while (!publish_if_discarded(rq, page, to)) {', '	for (;;) {', ['errnos']),
    ('a discard does not wait for the fetch', 'lib/resolve/range.c',
     '				kvmfault__page_wait(seat, memory, page + done);',
     '				0;\n			done++;',
     ['errnos', 'resolve']),
    ('believe who says resolved', 'lib/resolve/resolve.c',
     '	rq->installed = (struct kvmfault__installed){ .there = there > 0 };\n'
     '	return there;',
     '	rq->installed = (struct kvmfault__installed){ .there = 1 };\n'
     '	return 1;', ['resolve']),
    ('a hole ends the poisoning', 'lib/memory/install.c',
     '		if (err == -EEXIST || err == -ENOENT) {\n			at += size;',
     '		if (err == -EEXIST) {\n			at += size;', ['mapping']),
    ('believe a stale record', 'lib/kernel/decode.c',
     '	if (err != EFAULT && err != EHWPOISON)\n		return;\n',
     '	if (!err)\n		return;\n', ['decode']),
    ('do not align the gpa', 'lib/kernel/decode.c',
     '	fault->gpa = gpa & ~mask;', '	fault->gpa = gpa;',
     ['decode']),
    ('let flags pass that nobody understands', 'lib/resolve/chain.c',
     '		if (unknown & ~r->flags) {',
     '		if (0) {', ['resolve']),
    ('retry for ever', 'lib/entry/guard.c',
     '	if (++vcpu->guard.streak >= vcpu->vm->options.retry_budget) {',
     '	if (0) {', ['vcpu hangs']),
    ('a signal counts as progress', 'lib/entry/vcpu.c',
     '	if (!kvmfault__signal_take(vcpu))',
     '	kvmfault__guard_start(vcpu);\n	if (!kvmfault__signal_take(vcpu))',
     ['vcpu']),
    ('go on after an access that was lost', 'lib/entry/vcpu.c',
     '	if (vcpu_has_lost_access(vcpu))', '	if (0)',
     ['vcpu']),
    ('complete an access to ROM', 'lib/entry/mmio.c',
     ' ||\n	    (fault->access == KVMFAULT_ACCESS_WRITE &&\n'
     '	     region->info.flags & KVMFAULT_REGION_READONLY))',
     ')', ['mmio']),
    ('free what only a hazard of another kind holds', 'lib/core/seat.c',
     '	while (hazard < KVMFAULT__HAZARDS &&\n',
     '	while (hazard < KVMFAULT__HAZARD_UFFD &&\n', ['seat']),
    ('operations without a size are taken', 'lib/setup/vm.c',
     '	err = ours.ops ? ', '	err = 0 ? ', ['vm']),
    ('what has changed is told with nothing of the VMM', 'lib/memory/backing.c',
     'vm->ops.changed(vm->options.data, ', 'vm->ops.changed(NULL, ',
     ['resolve']),
    ('a child of fork() takes down what its parent has', 'lib/core/vm.h',
     '	return vm->born && !*vm->born;', '	return false;', ['live-uffd']),
    ('a page that was poisoned is installed', 'lib/resolve/request.c',
     '	if (ours->poisoned)\n', '	if (0)\n', ['failure']),
    ('a poisoned page is declined', 'lib/resolve/chain.c',
     ' && rq->poisoned)\n', ' && 0)\n', ['failure']),
    ('free what a reader holds', 'lib/core/seat.c',
     '		if (kvmfault__any_seat(vm, seat_holds, item)) {',
     '		if (0 && kvmfault__any_seat(vm, seat_holds, item)) {',
     ['seat']),
    ('do not wait for a fetch before memory is freed', 'lib/setup/memories.c',
     '	kvmfault__drain_until(vm, memory_is_in_use, memory);\n', '',
     ['fetch hangs']),
    ('leave absent pages readable at the end', 'lib/setup/mappings.c',
     '	err = guard && !stays ? mapping_guard_absent(mapping) : 0;',
     '	err = 0;',
     ['memory', 'mapping']),
    ('take preallocated memory for empty', 'lib/setup/memories.c',
     '	return -EEXIST;', '	return 0;', ['memory']),
    ('forget a fault that has to wait', 'lib/resolve/defer.c',
     '		deferred->item[deferred->count++] = *item;',
     '		;', ['service']),
    ('a second message forgets what was tried', 'lib/resolve/defer.c',
     '		message_merge(other, item);', '		;', ['service']),
    ('try what is parked again at once', 'lib/resolve/defer.c',
     '		if (deferred->item[i].due > now)\n			continue;',
     '', ['service hangs']),
    ('register before the mapping is known', 'lib/setup/mappings.c',
     '	*known = true;		/* from here on it is retired, not freed */\n'
     '	atomic_store(&memory->mappings, new);\n',
     '	*known = true;\n'
     '	if (mapping->uffd)\n'
     '		kvmfault__uffd_register(mapping->uffd->fd, mapping->host,\n'
     '					memory->length,\n'
     '					mapping_register_modes(memory),\n'
     '					&ioctls);\n'
     '	atomic_store(&memory->mappings, new);\n', ['mapping']),
    ('a wait that a signal ends says that the page came', 'lib/memory/wait.c',
     '	atomic_fetch_sub(&b->waiters, 1);\n	return err;',
     '	atomic_fetch_sub(&b->waiters, 1);\n	return 0;',
     ['page', 'waits hangs']),
    ('a message of another process taken for a repeated one',
     'lib/resolve/defer.c', '		if (deferred->item[i].space == space &&\n'
     '		    deferred->item[i].fault.hva == hva)',
     '		if (space < KVMFAULT__SPACES &&\n'
     '		    deferred->item[i].fault.hva == hva)', ['service']),
    ('an allocation on the fault path', 'lib/resolve/resolver-copy.c',
     '	err = kvmfault_request_data(request, &bytes);',
     '	kvmfault__sys_free(kvmfault__sys_alloc(1, 0));\n'
     '	err = kvmfault_request_data(request, &bytes);', ['path']),
    ('a lock held across the copy', 'lib/entry/service.c',
     '	kvmfault__resolve(seat, &item->fault, &target, &answer);',
     '	kvmfault__sys_lock(&seat->vm->lock);\n'
     '	kvmfault__resolve(seat, &item->fault, &target, &answer);\n'
     '	kvmfault__sys_unlock(&seat->vm->lock);', ['path']),
    ('cancel what the source does not have yet', 'lib/resolve/fetch.c',
     '	     (CANCELLED | SUBMITTED)) == SUBMITTED)\n',
     '	     CANCELLED) == 0)\n', ['fetch']),
    ('forget what was cancelled while it was submitted', 'lib/resolve/fetch.c',
     '	if (atomic_fetch_or(&fetch->state, SUBMITTED) & CANCELLED &&\n',
     '	if (atomic_fetch_or(&fetch->state, SUBMITTED) && 0 &&\n',
     ['fetch']),
    ('forget the deadline of a page that is asked for alone', 'lib/resolve/fetch.c',
     '	kvmfault__vm_deadline_lower(fetch->seat, atomic_load(&fetch->due));',
     '	if (fetch->rq.count > 1)\n'
     '		kvmfault__vm_deadline_lower(fetch->seat,\n'
     '					    atomic_load(&fetch->due));', ['fetch']),
    ('believe that the page of a window that was cancelled is lost',
     'lib/resolve/fetch.c',
     '	if (error == -EHWPOISON && fetch->rq.count > 1)\n', '	if (0)\n',
     ['fetch']),
    ('ask a source that fails at once again and again', 'lib/resolve/resolve.c',
     '		answer->action = KVMFAULT_ACTION_PENDING;\n'
     '		return true;\n	}\n	if (!err)',
     '		answer->action = KVMFAULT_ACTION_PENDING;\n'
     '		return true;\n	} else {\n		return false;\n	}\n	if (!err)',
     ['fetch hangs']),
    ('convert what overlaps at the same time', 'lib/resolve/conversion-queue.c',
     '	while (!err && conversion_is_blocked(vm, mine)) {',
     '	while (0 && conversion_is_blocked(vm, mine)) {', ['convert-race hangs']),
    ('discard before KVM is told', 'lib/resolve/convert.c',
     '	if (!err)\n		err = convert_tell_kvm(vm, run, private);\n'
     '	if (!err) {\n',
     '	if (!err)\n		convert_discard_other(seat, run, mine, private);\n'
     '	if (!err)\n		err = convert_tell_kvm(vm, run, private);\n'
     '	if (!err) {\n', ['convert', 'convert-race']),
    ('discard a huge page that is private in part', 'lib/resolve/convert.c',
     '		if (convert_is_all_private(part, at, size))',
     '		if (1)', ['convert']),
    ('look at a huge page that others convert', 'lib/resolve/convert.c',
     '	convert_widen_chunk(seat, &mine.pages);', '', ['convert']),
    ('share a page whose fetch will take it back', 'lib/resolve/convert.c',
     '			err = kvmfault__in_hand() ? -EDEADLK :\n'
     '				kvmfault__page_wait(part->seat, memory, page);',
     '			err = 0;',
     ['convert-race hangs']),
    ('leave a conversion half done', 'lib/resolve/convert.c',
     '	back = converter->set(converter->data, kvmfault__gpa(run.first),\n'
     '			      kvmfault__gfns_length(run), !private);', '	back = 0;', ['convert']),
    ('do not tell the hooks that it was undone', 'lib/resolve/convert.c',
     '	convert_call_after(vm, run, private, asked, !err);',
     '	if (!err)\n		convert_call_after(vm, run, private, asked, true);',
     ['convert']),
    ('wait for a conversion with a page in hand', 'lib/resolve/conversion-queue.c',
     '	return kvmfault__in_hand() ? -EDEADLK : 0;',
     '	return 0;', ['convert-race hangs']),
    ('do not tell who was refused that it is over', 'lib/resolve/conversion-queue.c',
     '	other->refused |= !wait;\n', '', ['convert-race']),
    ('forget what KVM was told', 'lib/resolve/convert.c',
     '		kvmfault__attributes_note(vm, run, private);', '',
     ['convert']),
    ('convert again what is so already', 'lib/resolve/convert.c',
     '			(struct kvmfault__gfns){ run.end, chunk.end },\n'
     '			!private);',
     '			(struct kvmfault__gfns){ run.end, chunk.end },\n'
     '			private);', ['convert']),
    ('punch a guest_memfd that may be closed', 'lib/setup/regions.c',
     '	kvmfault__drain(vm, region_removed_has_punch, NULL);', '	;',
     ['convert-race hangs']),
    ('take who lost the race for unresolved', 'lib/resolve/resolver-convert.c',
     '		return KVMFAULT_VERDICT_RESOLVED;\n	err =',
     '		return KVMFAULT_VERDICT_DECLINED;\n	err =', ['convert']),
    ('a conversion is no progress', 'lib/resolve/resolve.c',
     '	answer->came = answer->action == KVMFAULT_ACTION_RETRY &&\n'
     '		       !answer->error &&\n',
     '	answer->came = 0 &&\n',
     ['convert']),
    ('take an exit that says nothing for shadow paging', 'lib/kernel/paging.c',
     's->run->exit_reason == KVM_EXIT_SHUTDOWN ? 0 : -EIO', '0',
     ['paging']),
    ('leave the scratch guest open', 'lib/kernel/paging.c',
     '	scratch_free(&s);\n', '', ['paging', 'probe']),
    ('ask a guest that has paging off', 'lib/kernel/paging.c',
     '	sregs.cr0 = CR0;\n', '', ['paging']),
    ('the bit does not follow the state', 'lib/resolve/publish.c',
     '	kvmfault__userfault_follow(memory, page, 1);\n'
     '	kvmfault__page_wake(memory, page);',
     '	kvmfault__page_wake(memory, page);', ['userfault']),
    ('wake before the bit is cleared', 'lib/resolve/publish.c',
     '	kvmfault__userfault_follow(memory, page, 1);\n'
     '	kvmfault__page_wake(memory, page);',
     '	kvmfault__page_wake(memory, page);\n'
     '	kvmfault__userfault_follow(memory, page, 1);', ['userfault']),
    ('leave a bit that is set without need', 'lib/resolve/present.c',
     '	kvmfault__userfault_follow(rq->request.memory, rq->page, 1);\n',
     '', ['userfault']),
    ('punch before the bits are set', 'lib/resolve/range.c',
     '	kvmfault__userfault_follow(memory, page, count);\n', '',
     ['userfault']),
    ('a discard that failed leaves its bits', 'lib/resolve/range.c',
     '		kvmfault__userfault_follow(memory, page + i, 1);\n', '',
     ['userfault']),
    ('pages that an event takes do not exit', 'lib/entry/message.c',
     '		kvmfault__userfault_follow(memory, page, 1);\n', '',
     ['userfault']),
    ('who is late does not look again', 'lib/memory/userfault.c',
     '		} while (userfault_is_wanted(memory, page) != set);',
     '		} while (0);', ['userfault']),
    ('a poisoned page exits', 'lib/memory/page.c',
     'state == KVMFAULT__PRESENT || state == KVMFAULT__POISONED;',
     'state == KVMFAULT__PRESENT;', ['userfault']),
    ('a huge page has one word of bits', 'lib/core/bitmap.h',
     '	for (; count; first += step, count -= step) {',
     '	for (; count; count -= step) {', ['userfault']),
    ('a memslot whose bits begin within a long', 'lib/memory/userfault.c',
     '	if (memory->userfault && !(region->offset % span)) {',
     '	if (memory->userfault) {', ['userfault']),
    ('private pages by the bits of shared ones', 'lib/memory/userfault.c',
     '	if (!memory || region->guest_memfd > 0 ||',
     '	if (!memory ||', ['userfault']),
    ('any meaning of the flag is exit on missing', 'lib/kernel/kernel-exit.c',
     '	else if (!kernel_exit_try_slot(vm, KVM_SET_USER_MEMORY_REGION, 2, 0))',
     '	else', ['userfault']),
    ('a message has the flags of an exit', 'lib/memory/userfault.c',
     '	if (fault->kind != KVMFAULT_KIND_EXIT)\n		return 0;\n',
     '', ['userfault']),
    ('no other region is known when the known one goes', 'lib/setup/regions.c',
     '	} else if (span->memory && !atomic_load(&span->memory->shown)) {',
     '	} else if (0) {', ['failure', 'region']),
    ('who looks while regions are laid anew may find none', 'lib/core/table.c',
     '	return atomic_load(table) != held;', '	return false;', ['region']),
    ('what could not be replaced is gone', 'lib/setup/regions.c',
     '		((struct kvmfault_vm *)vm)->leaving--;\n'
     '		region_enter_table(vm, span);',
     '		;', ['region']),
    ('regions that overlap in one layout', 'lib/core/table.c',
     '	if (filling_overlaps(to, span->first))\n', '	if (0)\n', ['region']),
    ('a layout over one that stays', 'lib/core/table.c',
     '	if (filling_overlaps(to, from->first[begin]))\n', '	if (0)\n', ['region']),
    ('populate for reading what KVM wants to write', 'lib/resolve/resolver-populate.c',
     '	return populate_wants_writable(request) || kvmfault__may_write(fault);',
     '	return kvmfault__may_write(fault);', ['userfault']),
    ('mark a stretch for a lone touch', 'lib/memory/marker.c',
     '	return atomic_fetch_or(&touched[block / KVMFAULT__BITS], bit) & bit;',
     '	return true;', ['marker']),
    ('never mark a stretch that was touched twice', 'lib/memory/marker.c',
     'touched[block / KVMFAULT__BITS], bit) & bit;',
     'touched[block / KVMFAULT__BITS], bit) & 0;', ['marker']),
    ('mark what is being fetched', 'lib/memory/marker.c',
     '	return state == KVMFAULT__ABSENT || state == KVMFAULT__DISCARDED;',
     '	return state != KVMFAULT__PRESENT;', ['marker']),
    ('leave a marker on a page that came', 'lib/memory/marker.c',
     '		if (!marker_page_is_missing(memory, page))\n			err =',
     '		if (0)\n			err =', ['marker']),
    ('mark the only mapping there is', 'lib/memory/marker.c',
     '	if (kvmfault__own_mapping(all))\n', '	if (1)\n', ['marker']),
    ('wake who sleeps where a marker is put', 'lib/memory/marker.c',
     '					    (end - page) * size, size, true,\n',
     '					    (end - page) * size, size, false,\n',
     ['marker']),
    ('mark while somebody leaves the mode', 'lib/memory/marker.c',
     '	kvmfault__drain(seat->vm, marker_seat_is_marking, NULL);\n', '',
     ['marker hangs']),
    ('a stretch that could not be marked counts as marked', 'lib/memory/marker.c',
     '		atomic_fetch_and(word, ~bit);\n	kvmfault__unhold',
     '		;\n	kvmfault__unhold', ['marker']),
    ('what was punched is not marked again', 'lib/memory/marker.c',
     '		marker_block_mark_again(seat, memory,\n'
     '					target->offset >> memory->page_shift);',
     '		;', ['marker']),
    ('what was punched is marked again with its whole stretch', 'lib/memory/marker.c',
     '		if (!first && (err == -EEXIST || err == -ENOENT)) {',
     '		if (err == -EEXIST || err == -ENOENT) {', ['marker']),
    ('take a marker on a page that is there for a failure', 'lib/resolve/failure.c',
     '	if (err && memory->marked)\n', '	if (0)\n', ['marker']),
    ('let a vCPU spin that SIGBUS does not reach', 'lib/entry/signal.c',
     '	if (blocked & SIGBUS_BIT)\n', '	if (0)\n', ['signal']),
    ('swallow a SIGBUS that is not ours', 'lib/entry/vcpu.c',
     'action == KVMFAULT_ACTION_NOT_A_FAULT ?\n'
     '		vcpu_hand_on_signal(vcpu) : action;', 'action;', ['signal']),
    ('a handler that makes a system call', 'lib/entry/signal.c',
     '	atomic_store(&vcpu->sigbus.handler->span, NULL);\n',
     '	kvmfault__leave(vcpu->sigbus.handler);\n	kvmfault__sys_page_size();\n'
     '	kvmfault__sys_futex_wake(&vcpu->sigbus.handler->pause);\n', ['signal']),
    ('MARKER_EXIT where nobody has allowed it', 'lib/setup/delivery.c',
     '	    !(vm->options.allow & KVMFAULT_ALLOW_MARKER_EXIT)) {',
     '	    0) {', ['delivery']),
    ('MARKER_EXIT under shadow paging', 'lib/setup/delivery.c',
     '	if (!two)\n', '	if (0)\n', ['delivery']),
    ('read the bytes of MMIO through the markers', 'lib/memory/mapping.c',
     '	if (!own)\n		own = all->mapping[0];',
     '	own = all->mapping[0];', ['marker']),
    ('take a page whose page table is going for a hole', 'lib/resolve/present.c',
     '		if (err != -EFAULT)\n			return err;\n', '',
     ['continue']),
    ('walk past large pages', 'lib/entry/walk.c',
     ' || (entry & HUGE && w->huge & 1U << level)', '', ['walk']),
    ('take a large page of a level that has none', 'lib/entry/walk.c',
     'entry & HUGE && w->huge & 1U << level', 'entry & HUGE', ['walk']),
    ('read all of the page of a PAE guest', 'lib/entry/walk.c',
     '		w->root_entries = 4;\n', '', ['walk']),
    ('walk four levels of five', 'lib/entry/walk.c',
     's->cr4 & CR4_LA57 ? 5 : 4', '4', ['walk']),
    ('walk a table for every way that leads to it', 'lib/entry/walk.c',
     '	if (*slot == (gpa | 1))\n		return true;\n', '',
     ['walk']),
    ('walk for ever', 'lib/entry/walk.c',
     '	if (w->tables++ == TABLES_MAX)\n		return -ELOOP;\n', '',
     ['walk fails/hangs']),
    ('give up at a table that is no memory of ours', 'lib/entry/walk.c',
     '	return err == -ENXIO ? 1 : err;', '	return err;', ['walk']),
    ('read a private page\'s shared one', 'lib/memory/region.h',
     '	return region->info.guest_memfd > 0 &&\n'
     '	       kvmfault__private(vm, gpa / KVMFAULT__PAGE);\n',
     '	(void)vm;\n	(void)gpa;\n	return region->info.guest_memfd < 0;\n',
     ['walk']),
    ('nobody can end a walk', 'lib/entry/walk.c',
     '	if (kvmfault__exit_wanted(w->seat))\n		return -EINTR;\n',
     '', ['walk']),
    ('leave a page of a feature that is on', 'lib/entry/paravirt.c',
     'msr->data & features[i].enabled ?', '!(msr->data & 2) ?',
     ['paravirt']),
    ('make one byte too few present', 'lib/entry/paravirt.c',
     '{ 0x4b564d01, 32,', '{ 0x4b564d01, 30,', ['paravirt']),
    ('a page that nobody has ends it', 'lib/entry/paravirt.c',
     '	return err == -ENXIO ? 0 : err;', '	return err;',
     ['paravirt']),
    ('leave while the vCPU is held', 'lib/entry/delegate.c',
     '		} else if (state & KVMFAULT__TASK_HELD) {\n', '		} else if (0) {\n',
     ['delegate']),
    ('hold a vCPU whose thread has left', 'lib/core/vcpu-hold.c',
     '		if (state & KVMFAULT__TASK_LEFT)\n			return false;',
     '		if (0)\n			return false;', ['delegate']),
    ('a worker that was left waits on', 'lib/entry/delegate.c',
     '__atomic_store_n(&worker->leave, 1,',
     '__atomic_store_n(&worker->leave, 0,', ['delegate hangs']),
    ('who has left is to be told all the same', 'lib/entry/delegate.c',
     '		if (state & KVMFAULT__TASK_LEFT)\n			kvmfault__not_pending',
     '		if (0)\n			kvmfault__not_pending', ['delegate']),
    ('a worker that is busy is taken', 'lib/entry/delegate.c',
     '(worker->taken ||\n			  atomic_load(&worker->state) & KVMFAULT__TASK_BUSY)',
     '(worker->taken)',
     ['delegate']),
    ('a worker uses the descriptor of the VMM', 'lib/entry/delegate.c',
     '	worker->task.fd = worker->fd;\n', '', ['delegate']),
    ('a SIGBUS of nobody is work', 'lib/entry/vcpu.c',
     '		if (!vcpu->task.worker || vcpu_is_guest_hva(vcpu))\n', '',
     ['delegate hangs']),
    ('what a left conversion has done is not told', 'lib/entry/delegate.c',
     '	task->reached = worker->task.reached;\n', '', ['delegate']),
    ('an emulation that was interrupted is finished', 'lib/entry/emulation.c',
     '	vcpu->resume.emulating = kvmfault__perform(vcpu, &task, answer);',
     '	kvmfault__perform(vcpu, &task, answer);\n'
     '	vcpu->resume.emulating = false;', ['delegate']),
    ('a call that is made is not published', 'lib/setup/syscalls.c',
     'WITH(ioctl, 1, UFFDIO_COPY,', 'WITH(ioctl, 1, UFFDIO_API,',
     ['syscalls', 'vcpu']),
    ('what kvmfault_ensure() brings is recorded', 'lib/resolve/record.c',
     '	if (kvmfault__is_call(rq->request.fault))\n		return;\n',
     '', ['recording']),
    ('a discarded page is recorded', 'lib/resolve/publish.c',
     'installed->there && !zero)', 'installed->there)', ['recording']),
    ('a recording forgets where its memory is in the image',
     'lib/resolve/record.c', 'memory->source_offset + rq', 'rq',
     ['recording']),
    ('a recording has no end of its time', 'lib/resolve/record.c',
     'kvmfault__sys_now() >= recording->until', 'false', ['recording']),
    ('the end of a recording does not wait for who notes',
     'lib/setup/recordings.c',
     '	kvmfault__drain(vm, recording_is_held, recording);\n', '',
     ['recording']),
    ('a memory that is recorded is freed', 'lib/setup/memories.c',
     'else if (atomic_load(&memory->recording))', 'else if (0)',
     ['recording']),
    ('a touch that was noted is noted again', 'lib/memory/working-set.c',
     '		pieces->next[i] = i + 1;\n', '		;\n',
     ['working-set']),
    ('a set that could not grow keeps a part', 'lib/memory/working-set.c',
     '	set->runs = had;\n', '', ['working-set']),
    ('sets of two images are merged', 'lib/memory/working-set.c',
     '	    memcmp(set->identity, other->identity, sizeof(set->identity)))',
     '	    0)', ['working-set']),
    ('the checksum of a working set is not looked at',
     'lib/memory/working-set-file.c', '!= checksum)', '!= checksum && 0)',
     ['working-set']),
    ('a file of a working set has a byte twice',
     'lib/memory/working-set-file.c', '	if (!err && body_has_overlap(',
     '	if (0 && body_has_overlap(', ['working-set']),
    # fills
    ('a fill brings back what was discarded', 'lib/resolve/resolve.c',
     '	if (!kvmfault__fills(rq))\n		return kvmfault__page_claim(',
     '	if (1)\n		return kvmfault__page_claim(', ['fill']),
    ('a fill works while the guest faults', 'lib/entry/fill.c',
     '		wait = took * REST;\n', '		;\n', ['fill']),
    ('a run of a working set is longer than the buffer',
     'lib/entry/fill-order.c',
     ' : unit) - offset % unit;', ' : unit);', ['fill']),
    ('a fill is over while pages are missing', 'lib/entry/fill.c',
     '	if (progress->missing)\n		return false;\n', '', ['fill']),
    ('a fill that is paused sees nothing', 'lib/entry/fill.c',
     '	    !kvmfault__fill_has_absent(fill) &&\n', '	    0 &&\n', ['fill']),
    ('a fill that waits for its rate sees nothing', 'lib/entry/fill.c',
     '		return fill_watch(fill, now, wait);\n', '		return wait;\n',
     ['fill']),
    ('a fill is not paused from the beginning on', 'lib/setup/fills.c',
     '	atomic_store(&new->paused, o->paused);\n', '', ['fill']),
    ('a step ends in the middle of a chunk', 'lib/entry/fill-order.c',
     '	if (chunk)\n		at += memory->source_offset;\n', '', ['fill']),
    ('a run of a working set is half a chunk', 'lib/entry/fill-order.c',
     '	if (chunk && memory->window == KVMFAULT_WINDOW_SOURCE) {\n',
     '	if (0) {\n', ['fill']),
    ('a chunk is paid for as a page', 'lib/entry/fill-pace.c',
     '	if (!rate || paid == came)\n', '	if (!rate || paid <= came)\n',
     ['fill']),
    ('a piece that was put back is forgotten', 'lib/entry/fill-order.c',
     '		fill->back[fill->backs++] = *piece;\n', '		;\n',
     ['fill hangs']),
    ('the working set is at its end while a thread has a piece of it',
     'lib/entry/fill-order.c',
     '	fill->in_hand += taken && piece->first;\n', '', ['fill']),
    ('one bad page keeps a window away', 'lib/entry/fill.c',
     '		atomic_store(&fill->run_length, asked / 2 << shift);\n',
     '		;\n', ['fill']),
    ("events of another process's memory are not looked at",
     'lib/setup/userfaultfds.c',
     '	err = ours.fd > 0 ? kvmfault__reader_new(new) : 0;\n',
     '	err = ours.fd > 0 && !ours.remote ? kvmfault__reader_new(new) : 0;\n',
     ['live-remote']),
    ("take pages away at another process's address", 'lib/memory/backing.c',
     '	if (kvmfault__out_of_reach(memory))\n		return 0;',
     '	if (0)\n		return 0;', ['live-remote']),
    ("the file of another process's memory is looked at", 'lib/setup/import.c',
     '	if (kvmfault__out_of_reach(memory))\n		return import_believe_page',
     '	if (0)\n		return import_believe_page', ['live-remote']),
    ('a region shows the memory of another process', 'lib/setup/regions.c',
     '	if (!why && r->memory && r->memory->remote)\n', '	if (0)\n',
     ['live-remote']),
    ('a device sleeps on after a settle that was killed',
     'lib/setup/mappings.c',
     '	if (memory->was_settled && uffd)\n', '	if (0)\n',
     ['live-device fails/hangs']),
    ('a fill is not told that its source is gone', 'lib/resolve/fetch.c',
     '		atomic_store(&asked->fill_error, error);\n', '		;\n', ['fill']),
    ("another fill's fetch keeps a fill waiting", 'lib/resolve/fetch.c',
     '		    atomic_load(&all->fetch[i].fill) == fill)\n',
     '		    atomic_load(&all->fetch[i].fill) && fill)\n', ['fill']),
    ('a fill has many fetches while the guest faults', 'lib/resolve/fetch.c',
     '	if (seat->gentle && fetch', '	if (0 && fetch', ['fill']),
    ('a fill takes all of the fetches', 'lib/resolve/fetch.c',
     '1 : all->count / 2;', '1 : all->count;', ['fill']),
    ('a memory is freed under a fill', 'lib/setup/memories.c',
     '	else if (memory->fills)\n', '	else if (0)\n', ['fill']),
    ('a memory is settled under a fill', 'lib/setup/settle.c',
     '	filled = memory->fills;\n', '	filled = false;\n', ['fill']),
    ('a rate is set and not kept', 'lib/entry/fill-pace.c',
     '		if (due > now)\n			return due - now;\n',
     '', ['fill']),
    # holes
    ('a page with some data is a hole', 'lib/resolve/extent.c',
     '		if (!extents->zero)\n			return 0;\n', '',
     ['hole']),
    ('what is too long to ask is a hole', 'lib/resolve/extent.c',
     '	int kind = KVMFAULT_EXTENT_DATA;\n', '	int kind = KVMFAULT_EXTENT_ZERO;\n',
     ['hole']),
    ('a window of holes goes over data', 'lib/resolve/window.c',
     '	if (memory->source.extent &&', '	if (0 &&', ['hole']),
    ('what the source said of a page counts for its neighbours',
     'lib/resolve/extent.c',
     '	return next > page ? next : page + 1;\n', '	return next + 8;\n',
     ['hole']),
    ('a page is an error because of one far away', 'lib/resolve/extent.c',
     '	if (kind < 0)\n		return kvmfault__source_extent(',
     '	if (0)\n		return kvmfault__source_extent(', ['hole']),
    ('a window of holes ends one page late', 'lib/resolve/extent.c',
     '			*end = page;', '			*end = page + 1;', ['hole']),
    ('believe whatever a source says of its holes', 'lib/memory/source.c',
     ' || !*length || *length > asked)', ')', ['hole', 'source hangs']),
    ('a hole where the source was cut off', 'lib/memory/source.c',
     '	if (kind != KVMFAULT_EXTENT_DATA &&\n', '	if (0 &&\n',
     ['hole', 'source']),
    ('a hole past the end of a file', 'lib/memory/source.c',
     '		if (stat.st_size <= from)\n			return -ENODATA;\n',
     '', ['hole', 'source']),
    ('take an error of a file for data', 'lib/memory/source.c',
     '	if (to <= from)\n		return to < 0 ? (int)to : -EIO;\n',
     '	if (to <= from)\n		return KVMFAULT_EXTENT_DATA;\n', ['source']),
    ('a hole leaves the old page of the file', 'lib/resolve/request.c',
     'rq->request.page == KVMFAULT_PAGE_DISCARDED || !memory->fill)', '1)',
     ['hole']),
    ('read again over what came', 'lib/resolve/request.c',
     '	if (own && memory->fill && rq->installed.there)\n		return 0;\n',
     '', ['hole']),
    ('a hole is read as what the file had', 'lib/resolve/request.c',
     ' || rq->request.page == KVMFAULT_PAGE_HOLE)\n		memset', ')\n		memset',
     ['hole']),
    ('a hole counts as fetched', 'lib/resolve/publish.c',
     'else if (rq->request.page == KVMFAULT_PAGE_HOLE)', 'else if (0)', ['hole']),
    ('a hole above hides what is below', 'lib/memory/layers.c',
     '	if (kind != KVMFAULT_EXTENT_HOLE)\n', '	if (kind >= 0)\n',
     ['hole', 'source']),
    ('zeros where the layer below has ended', 'lib/memory/layers.c',
     '		return -ENODATA;\n', '		return KVMFAULT_EXTENT_HOLE;\n',
     ['source']),
    ('the data of a layer goes on over its end', 'lib/memory/layers.c',
     '	if (source->length && *length > source->length - offset)\n',
     '	if (0)\n', ['source']),
    ('settle a memory that lacks a page', 'lib/setup/settle.c',
     '	if (*left && kvmfault__tracked(memory))\n', '	if (0)\n',
     ['settle']),
    ('a poisoned page is there', 'lib/memory/wait.c',
     '	return (~(word >> 2) | word >> 1) &', '	return ~(word >> 2) &',
     ['settle']),
    ('settle what is protected', 'lib/setup/settle.c',
     '	*left = counts.to_save;', '	*left = 0;', ['settle']),
    ('protect what is being settled', 'lib/resolve/protect.c',
     '	return atomic_load(&memory->settling) ? -EAGAIN : 0;', '	return 0;',
     ['settle']),
    ('leave markers in a settled memory', 'lib/setup/settle.c',
     '		err = settle_end_markers(memory);', '		err = 0;', ['settle']),
    ('exits go on in a settled memory', 'lib/setup/settle.c',
     '	kvmfault__userfault_leave(memory);\n', '', ['settle']),
    ('a bit is set in a settled memory', 'lib/memory/userfault.c',
     ' && kvmfault__tracked(memory);', ';', ['settle']),
    ('states go while a thread looks at them', 'lib/setup/settle.c',
     '	settle_drain_seats(memory);\n', '', ['settle hangs']),
    ('what could not be unregistered is settled', 'lib/setup/settle.c',
     '		atomic_store(&memory->tracked, true);', '		;', ['settle']),
    ('no second look after a memory was settled', 'lib/resolve/resolve.c',
     '	if (rq->poisoned || kvmfault__tracked(rq->request.memory))\n', '',
     ['settle']),
    ('close a settled memory to readers', 'lib/setup/mappings.c',
     '	if (!kvmfault__tracked(memory) || !kvmfault__pages_absent(memory) ||\n'
     '	    !kvmfault__tracked(memory))\n',
     '	if (!kvmfault__pages_absent(memory))\n', ['settle']),
    ('unregister what the VMM may have registered', 'lib/setup/mappings.c',
     '	if (!err && !stays && kvmfault__tracked(memory))\n',
     '	if (!err && !stays)\n', ['settle']),
    ('what is in flight and has a sleeper is in no state', 'lib/memory/states.c',
     '			states_mask_one(word, KVMFAULT__FETCHING_WAITED) |\n', '',
     ['states']),
    ('bits behind a word are lost', 'lib/memory/states.c',
     '		if (shift + step > 64)\n', '		if (0)\n', ['states']),
    ('who goes to sleep while a range is unregistered', 'lib/kernel/uffd.c',
     '	kvmfault__uffd_wake(fd, start, length);\n	return err;',
     '	return err;', ['mapping']),
    ('nobody answers the sleepers of a memory that is freed',
     'lib/setup/memories.c', '	kvmfault__drain_sleepers(vm,',
     '	kvmfault__drain(vm,', ['delegate hangs']),
    ('nobody answers the sleepers of a mapping that is removed',
     'lib/setup/mappings.c',
     '	kvmfault__drain_sleepers(vm, mapping_seat_has_old_list, vm);',
     '	kvmfault__drain(vm, mapping_seat_has_old_list, vm);',
     ['mapping hangs']),
    ('forget what was read before the service ended', 'lib/entry/service.c',
     '			atomic_store(&vm->unserved, true);\n', '',
     ['service hangs']),
    ('forget what failed without a service', 'lib/entry/service.c',
     '		atomic_store(&seat->vm->unserved, true);', '		;',
     ['service hangs']),
    ('leave asleep who failed last without a service', 'lib/entry/service.c',
     '	in.due = 0;\n	service_wake_unserved(&in);\n', '', ['service']),
    ('tell nobody of what fails without a service', 'lib/entry/service.c',
     '	item->tries.failures = in->failures++;\n', '', ['service']),
    ('the only thread of a service waits for itself', 'lib/entry/service.c',
     '	       !kvmfault__within(service_seat_is_of_thread, NULL);',
     '	       true;', ['service hangs']),
    ('wait for the VMM to dispatch', 'lib/entry/service.c',
     '	atomic_store(&vm->read, service->threads);\n',
     '	atomic_store(&vm->read, true);\n', ['service hangs']),
]


def mutate(tree, mutation):
    """How to undo it; None: its text is not there."""
    _, path, old, new, _ = mutation
    path = os.path.join(tree, path)
    with open(path) as file:
        text = file.read()
    if text.count(old) != 1:
        return None
    with open(path, 'w') as file:
        file.write(text.replace(old, new))

    def undo():
        with open(path, 'w') as file:
            file.write(text)
    return undo


def compile(build, tests):
    """What the compiler says, if it fails."""
    done = subprocess.run(['ninja', '-C', build,
                           *('tests/test-' + test for test in tests)],
                          capture_output=True, text=True)
    return done.stdout[-2000:] if done.returncode else ''


def run(build, test, seconds):
    """What came of it: passes, fails, hangs, or a status that says neither."""
    program = subprocess.Popen([os.path.join(build, 'tests/test-' + test)],
                               start_new_session=True,
                               stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        status = program.wait(seconds)
    except subprocess.TimeoutExpired:
        # Check kills its child for this, and all of its own group.
        program.send_signal(signal.SIGINT)
        program.wait()
        return 'hangs'
    return {0: 'passes', 1: 'fails'}.get(status, f'ends with {status}')


def wrong(tree, build, mutation, patience):
    """What is wrong with it; nothing, if each of its tests notices."""
    expected = dict((test.split() + ['fails'])[:2] for test in mutation[4])
    undo = mutate(tree, mutation)
    if not undo:
        return ['its text is not found exactly once']
    try:
        errors = compile(build, expected)
        if errors:
            return ['does not compile:\n' + errors]
        came = {test: run(build, test, patience[test]) for test in expected}
    finally:
        undo()
    return [f'{test} {came[test]}' for test in expected
            if came[test] not in expected[test].split('/')]


def simulated(tree, build, mutation, options):
    """The simulator's first failure that is not known; None, if it has none."""
    undo = mutate(tree, mutation)
    if not undo:
        raise ValueError('its text is not found exactly once')
    try:
        subprocess.run(['ninja', '-C', build, 'tests/sim/sim'], check=True,
                       stdout=subprocess.DEVNULL)
        done = subprocess.run(
            [os.path.join(build, 'tests/sim/sim'), 'search', '--first',
             '--json', '--seconds', str(options.simulate),
             '--seeds', str(options.seeds), '--jobs', str(options.jobs),
             '--known', os.path.join(tree, 'tests/sim/open.txt')],
            capture_output=True, text=True)
    finally:
        undo()
    if done.returncode not in (0, 1):
        raise ValueError(f'the simulator ends with {done.returncode}')
    for failure in json.loads(done.stdout)['failures']:
        if not failure['known']:
            return failure
    return None


def simulate(tree, build, chosen, options):
    """A line for each, as soon as it is noticed, or its time is over."""
    nothing = ('nothing is changed', 'lib/setup/memories.c', '	return -EEXIST;',
               '	return -EEXIST;', None)
    if simulated(tree, build, nothing, options):
        sys.exit('the simulator fails without any mutation')
    caught = wrong = 0
    for n, mutation in enumerate(chosen, 1):
        try:
            failure = simulated(tree, build, mutation, options)
            said = 'MISSED'
            if failure:
                caught += 1
                said = (f'ok: {failure["kind"]}, seed {failure["seed"]}, '
                        f'{failure["after"]:.1f} s')
        except (ValueError, subprocess.CalledProcessError) as why:
            wrong += 1
            said = f'WRONG: {why}'
        print(f'{n}/{len(chosen)} {mutation[0]}: {said}', flush=True)
    print(f'the simulator notices {caught} of {len(chosen)} mutations, '
          f'{100 * caught // max(1, len(chosen))} %; {wrong} are wrong')
    sys.exit(bool(wrong or not chosen or 5 * caught < 4 * len(chosen)))


def copy(source, work):
    tree = os.path.join(work, 'tree')
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(
        'build*', '.git', 'fuzz-*'))
    build = os.path.join(work, 'build')
    subprocess.run(['meson', 'setup', '-Dtools=disabled', '-Dtests=enabled',
                    build, tree], check=True, stdout=subprocess.DEVNULL)
    return tree, build


def measure(build, tests):
    """How long each may take: many times what it takes without a mutation."""
    patience = {}
    errors = compile(build, tests)
    if errors:
        sys.exit('does not compile without any mutation:\n' + errors)
    for test in tests:
        begin = time.monotonic()
        came = run(build, test, 600)
        if came != 'passes':
            sys.exit(f'{test} {came} without any mutation')
        patience[test] = max(5, 20 * (time.monotonic() - begin))
    return patience


def twins():
    """What goes wrong, and a mutation with which it has to."""
    file, line = 'lib/setup/memories.c', '	return -EEXIST;'
    yield 'passes', (None, file, line, line + '\n', ['memory'])
    yield 'hangs', (None, file, line, '	for (;;)\n		;', ['memory'])
    yield 'fails', (None, file, line, '	return 0;', ['memory hangs'])
    yield 'not found exactly once', (None, file, line * 2, '', ['memory'])
    yield 'not compile', (None, file, line, '#error', ['memory'])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('source')
    parser.add_argument('--simulate', type=int, metavar='SECONDS')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--seeds', type=int, default=2 ** 40)
    parser.add_argument('--only', action='append')
    parser.add_argument('--part', type=int, nargs=2, default=(1, 1))
    options = parser.parse_args()
    part, parts = options.part
    chosen = [m for m in MUTATIONS
              if not options.only or m[0] in options.only][part - 1::parts]
    failures = 0

    # Who starts it in the background may have it ignored, by the tests too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as work:
        tree, build = copy(options.source, work)
        if options.simulate:
            simulate(tree, build, chosen, options)
        doctored = dict(twins())
        patience = measure(build, sorted({
            test.split()[0] for m in (*chosen, *doctored.values())
            for test in m[4]}))
        for mutation in chosen:
            why = wrong(tree, build, mutation, patience)
            failures += bool(why)
            print(f'{"WRONG" if why else "ok"}: {mutation[0]}: '
                  f'{", ".join(why or mutation[4])}', flush=True)
        for what, mutation in doctored.items():
            why = ', '.join(wrong(tree, build, mutation, patience))
            if what not in why:
                sys.exit(f'the twin "{what}" was not noticed: {why}')
    print(f'{len(chosen)} mutations, {failures} wrong')
    sys.exit(bool(failures or not chosen))


main()
