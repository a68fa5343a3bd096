/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What KVM itself reads of a guest's memory: its page tables, and the pages
 * that its MSRs name; and who walks the tables. In: the option tables, a vCPU.
 * Out: tables in the sources' images, of whatever a guest may put there; and
 * after each call about them, what has to be present is. The walk here is
 * another one than the library's: it looks at the model's frames, and nothing
 * is fetched by it. It judges only if nobody has changed memory meanwhile.
 */

#include <string.h>

#include "kvmfault-experimental.h"
#include "sources.h"
#include "world.h"

#define NOWHERE 0x900000ULL		/* in no region */
#define PRESENT 1ULL
#define LARGE 0x80ULL
#define ADDRESS 0x000ffffffffff000ULL

#ifdef __x86_64__

/* ---- what is there ---- */

static bool is_private(const struct sim_memory *memory, uint64_t gpa)
{
	return memory->guest_memfd && kvm.private[gpa / PAGE];
}

/* The memory that a region shows there, and its page; or NULL. */
static struct sim_memory *shown_at(uint64_t gpa, unsigned int *page)
{
	struct sim_memory *memory = world_memory_at(gpa);

	if (!memory || !memory->shown)
		return NULL;
	*page = (unsigned int)((gpa - memory->gpa) / PAGE);
	return memory;
}

/* Its bytes, or NULL: it has still to come. */
const char *present_bytes(const struct sim_memory *memory, unsigned int page)
{
	frame_t frame = -1;
	unsigned int at;
	struct map *map;

	if (memory->file) {
		frame = memory->file->frame[page];
	} else {
		map = map_at(our_mm, memory->memslots + page * PAGE, &at);
		if (map && map->pte[at].kind == PTE_PRESENT)
			frame = map->pte[at].frame;
	}
	return frame < 0 ? NULL : frame_bytes(frame);
}

static bool is_lost(struct sim_memory *memory, unsigned int page)
{
	return truth_word(&memory->truth, page, 0)->lost;
}

/* ---- when it can be judged ---- */

/* False: somebody is just about to change something. */
static bool is_calm(void)
{
	unsigned int i;

	for (i = 0; i < world.memories; i++)
		if (world.memory[i].busy || world.memory[i].truth.open ||
		    world.memory[i].hidden.open)
			return false;
	/* Who lies, and who reads holes, makes pages that are not the source's;
	 * and of what a balloon has taken the library learns a while later. */
	return !option(OPT_events) && !world.writing && !world.converting &&
	       !world.child && !world.lies;
}

static unsigned int changes(void)
{
	unsigned int i, n = world.regions_changed + world.failures;

	for (i = 0; i < world.memories; i++)
		n += world.memory[i].truth.changes +
		     world.memory[i].hidden.changes;
	return n;
}

struct quiet quiet_begin(void)
{
	return (struct quiet){ .calm = is_calm(), .changes = changes() };
}

bool was_quiet(const struct quiet *quiet)
{
	return quiet->calm && is_calm() && quiet->changes == changes();
}

/* ---- how tables are made ---- */

static const struct mode {
	const char *name;
	uint64_t cr0, cr4, efer;
	unsigned int top;		/* the root's level */
	unsigned int large;		/* bits: levels that have large pages */
	unsigned int entry;		/* bytes */
} modes[] = {				/* as the option tables */
	{ "none", 0x11, 0x30, 0, 0, 0, 8 },
	{ "32 bits", 0x80000011, 0, 0, 2, 0, 4 },
	{ "32 bits, PSE", 0x80000011, 0x10, 0, 2, 1 << 2, 4 },
	{ "PAE", 0x80000011, 0x30, 0, 3, 1 << 2, 8 },
	{ "4 levels", 0x80000011, 0x20, 0x500, 4, 1 << 3 | 1 << 2, 8 },
	{ "5 levels", 0x80000011, 0x1020, 0x500, 5, 1 << 3 | 1 << 2, 8 },
};
#define MODES (sizeof(modes) / sizeof(*modes))
#define PAE 3U
#define PAE_ROOT 4U			/* its root has so many entries */

#define TABLES 6U
#define EXTRA 10U			/* entries, beside those of the chain */
#define LEVELS 6U			/* and 0, which is none */

static struct {
	uint64_t gpa[TABLES];
	uint64_t root;
} made;

static unsigned int entries_of(const struct mode *mode, unsigned int level)
{
	return mode == &modes[PAE] && level == mode->top ? PAE_ROOT :
	       (unsigned int)PAGE / mode->entry;
}

static uint64_t root_of(const struct mode *mode, uint64_t cr3)
{
	if (mode == &modes[PAE])
		return cr3 & 0xffffffe0;
	return mode->entry == 4 ? cr3 & 0xfffff000 : cr3 & ADDRESS;
}

static uint64_t any_page(void)
{
	const struct sim_memory *memory =
		&world.memory[sim_below(world.memories)];

	return memory->gpa + sim_below(memory->pages) * PAGE;
}

static void put_entry(uint64_t at, uint64_t to, bool large,
		      const struct mode *mode)
{
	const struct sim_memory *memory = world_memory_at(at);
	/* Bits that have nothing to do with where it leads. */
	uint64_t value = to | (sim_below(0x40) << 1 & 0x66) |
			 (large ? LARGE : 0);

	if (!sim_one_in(8))
		value |= PRESENT;
	if (mode->entry == 8 && sim_one_in(2))
		value |= 0x8000000000000000ULL;
	tell("an entry at %#llx: %#llx", (unsigned long long)at,
	     (unsigned long long)value);
	memcpy(source_image(memory->id) + (at - memory->gpa), &value,
	       mode->entry);
}

/* Of the table's entries one that nobody else uses: see oracle_word, CODE. */
static uint64_t free_entry(const struct mode *mode, unsigned int level,
			   uint64_t table)
{
	unsigned int i, at, n = entries_of(mode, level);

	for (;;) {
		at = (unsigned int)(table % PAGE) + sim_below(n) * mode->entry;
		for (i = 0; i < WORDS; i++)
			if (at / 8 == oracle_word[i] / 8)
				break;
		if (i == WORDS && at / 8 != SOURCE_CODE / 8)
			return table / PAGE * PAGE + at;
	}
}

/* From the root down a table of each level; a bit that is no large page's there
 * may be set. */
static void make_chain(const struct mode *mode)
{
	unsigned int i, level;
	uint64_t at;
	bool large;

	for (i = 0; i + 1 < mode->top; i++) {
		level = mode->top - i;
		large = !(mode->large >> level & 1) && sim_one_in(2);
		at = free_entry(mode, level, i ? made.gpa[i] : made.root);
		put_entry(at, made.gpa[i + 1], large, mode);
	}
}

/* Anything: a second way, a way back, large pages, what is nobody's. */
static void make_extra(const struct mode *mode)
{
	unsigned int n, from, way;
	uint64_t to, at;

	for (n = 0; n < EXTRA; n++) {
		from = sim_below(TABLES);
		way = sim_below(5);
		to = way < 2 ? made.gpa[sim_below(TABLES)] :
		     way < 3 ? made.gpa[from] :
		     way < 4 ? any_page() : NOWHERE + sim_below(64) * PAGE;
		at = free_entry(mode, 1, made.gpa[from]);
		put_entry(at, to, sim_one_in(2), mode);
	}
}

void tables_make(void)
{
	const struct mode *mode = &modes[option(OPT_tables)];
	unsigned int i;

	if (!option(OPT_tables))
		return;
	for (i = 0; i < TABLES; i++) {
		made.gpa[i] = any_page();
		source_fill_page(made.gpa[i], 0);
	}
	made.root = made.gpa[0];
	/* With PAE it may stand anywhere in its page. */
	if (mode == &modes[PAE])
		made.root += 32 * (3 + sim_below(8));
	tell("tables: %s, the root at %#llx", mode->name,
	     (unsigned long long)made.root);
	make_chain(mode);
	make_extra(mode);
}

/* ---- what a call has done ---- */

static struct walking {
	const struct task *task;	/* NULL: none */
	bool fetched[MEMORIES][MEMORY_PAGES];
	uint32_t read[MEMORIES][MEMORY_PAGES];	/* bytes */
	bool asked[MEMORIES][MEMORY_PAGES];	/* a register leads there */
} walking[VCPUS_MAX];

void tables_reset(void)
{
	unsigned int i;

	for (i = 0; i < TABLES && made.root; i++)
		source_fill_page(made.gpa[i], 0x80 + made.gpa[i] / PAGE %
				 MEMORY_PAGES);
	memset(&made, 0, sizeof(made));
	memset(walking, 0, sizeof(walking));
}

static struct walking *walking_now(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS_MAX; i++)
		if (walking[i].task == current)
			return &walking[i];
	return NULL;
}

void tables_note_fetch(const struct sim_memory *memory, uint64_t offset,
		       uint64_t length)
{
	struct walking *w = walking_now();
	uint64_t at;

	for (at = offset; w && at < offset + length; at += PAGE)
		w->fetched[memory->id][at / PAGE] = true;
}

void tables_note_read(const struct file *file, uint64_t offset, size_t length)
{
	struct walking *w = walking_now();
	unsigned int i;

	for (i = 0; w && i < world.memories; i++)
		if (world.memory[i].file == file)
			w->read[i][offset / PAGE] += (uint32_t)length;
}

void tables_note_asked(uint64_t gpa)
{
	const struct sim_memory *memory = world_memory_at(gpa);
	struct walking *w = walking_now();

	if (w && memory)
		w->asked[memory->id][(gpa - memory->gpa) / PAGE] = true;
}

/* ---- another walk ---- */

#define REMEMBERED 64U			/* tables of a level, by address */

struct walk {
	const struct mode *mode;
	bool unsure;			/* a table is lost */
	uint8_t levels[MEMORIES][MEMORY_PAGES];	/* bits: it is a table there */
	uint32_t size[MEMORIES][MEMORY_PAGES];	/* bytes of these tables */
	/* What the library has no room to remember, it may look at again. */
	uint64_t met[LEVELS][REMEMBERED];
	bool crowded[LEVELS][REMEMBERED];
};

static bool *crowded(struct walk *w, unsigned int level, uint64_t gpa)
{
	return &w->crowded[level][gpa / PAGE % REMEMBERED];
}

static void meet(struct walk *w, unsigned int level, uint64_t gpa)
{
	uint64_t *met = &w->met[level][gpa / PAGE % REMEMBERED];

	if (*met && *met != gpa + 1)
		*crowded(w, level, gpa) = true;
	*met = gpa + 1;
}

static void walk(struct walk *w, unsigned int level, uint64_t gpa)
{
	unsigned int page, i, n = entries_of(w->mode, level);
	struct sim_memory *memory = shown_at(gpa, &page);
	uint64_t entry = 0;
	const char *bytes;

	meet(w, level, gpa);
	if (!memory || is_private(memory, gpa) ||
	    w->levels[memory->id][page] >> level & 1)
		return;
	w->levels[memory->id][page] |= (uint8_t)(1U << level);
	bytes = present_bytes(memory, page);
	w->unsure |= is_lost(memory, page);
	if (!bytes && !is_lost(memory, page))
		sim_fail("a page table is left absent",
			 "%s, level %u: memory %u, page %u", w->mode->name,
			 level, memory->id, page);
	if (level == 1 || !bytes)
		return;
	w->size[memory->id][page] += n * w->mode->entry;
	for (i = 0; i < n; i++) {
		memcpy(&entry, bytes + gpa % PAGE + i * w->mode->entry,
		       w->mode->entry);
		if (entry & PRESENT &&
		    !(entry & LARGE && w->mode->large >> level & 1))
			walk(w, level - 1, entry & ADDRESS);
	}
}

/* Or what a register leads to. */
static bool is_table(const struct walk *w, const struct walking *did,
		     const struct sim_memory *memory, unsigned int page)
{
	unsigned int i, first = page - page % memory->unit;

	for (i = first; i < first + memory->unit; i++)
		if (w->levels[memory->id][i] || did->asked[memory->id][i])
			return true;
	return false;
}

static bool is_crowded(struct walk *w, const struct sim_memory *memory,
		       unsigned int page)
{
	unsigned int level;

	for (level = 1; level < LEVELS; level++)
		if (w->levels[memory->id][page] >> level & 1 &&
		    *crowded(w, level, memory->gpa + page * PAGE))
			return true;
	return false;
}

static void check_page(struct walk *w, const struct walking *did,
		       const struct sim_memory *memory, unsigned int page)
{
	/* Windows and huge pages bring others with it. */
	if (!option(OPT_window) && did->fetched[memory->id][page] &&
	    !is_table(w, did, memory, page))
		sim_fail("the walk fetches what is no table",
			 "%s: memory %u, page %u", w->mode->name, memory->id,
			 page);
	if (did->read[memory->id][page] > w->size[memory->id][page] &&
	    !did->asked[memory->id][page] && !is_crowded(w, memory, page))
		sim_fail("the walk reads what is no table, or one again",
			 "%s: memory %u, page %u: %u bytes in place of %u",
			 w->mode->name, memory->id, page,
			 did->read[memory->id][page],
			 w->size[memory->id][page]);
}

static void check_walk(const struct mode *mode, uint64_t cr3,
		       const struct walking *did)
{
	struct walk w = { .mode = mode };
	unsigned int i, page;

	if (mode->top)
		walk(&w, mode->top, root_of(mode, cr3));
	for (i = 0; i < world.memories && !w.unsure; i++)
		for (page = 0; page < world.memory[i].pages; page++)
			check_page(&w, did, &world.memory[i], page);
}

/* ---- kvmfault_ensure_page_tables() ---- */

static const struct mode *set_mode(struct kvm_sregs *s, unsigned int page)
{
	const struct mode *mode = &modes[4];

	s->cr3 = world.memory[0].gpa + page * PAGE;
	if (option(OPT_tables)) {
		mode = &modes[sim_one_in(8) ? sim_below(MODES) :
			      option(OPT_tables)];
		if (!sim_one_in(8))
			s->cr3 = made.root | sim_below(0x20);
	}
	s->cr0 = mode->cr0;
	s->cr4 = mode->cr4;
	s->efer = mode->efer;
	tell("paging: %s, CR3 %#llx", mode->name, (unsigned long long)s->cr3);
	return mode;
}

static int ensure_tables(struct sim_vcpu *vcpu, const struct mode *mode)
{
	struct walking *did = &walking[vcpu->id];
	unsigned int injected = current->injected;
	struct quiet quiet = quiet_begin();
	uint8_t exit = __atomic_load_n(&vcpu->run.immediate_exit,
				       __ATOMIC_RELAXED);
	int err;

	memset(did, 0, sizeof(*did));
	did->task = current;
	err = CALL(kvmfault_ensure_page_tables, true,
		   kvmfault_ensure_page_tables(vcpu->handle));
	did->task = NULL;
	if (!err && mode->top && exit)
		sim_fail("a walk goes on that was to end", "%s", mode->name);
	if (err != -EINTR || !exit)
		check_error("kvmfault_ensure_page_tables", err, injected);
	if (!err && was_quiet(&quiet))
		check_walk(mode, vcpu->kvm->sregs.cr3, did);
	return err;
}

void tables_walk(struct sim_vcpu *vcpu, unsigned int page)
{
	/* The guest that it else runs has other ones. */
	struct kvm_sregs before = vcpu->kvm->sregs;
	const struct mode *mode = set_mode(&vcpu->kvm->sregs, page);
	unsigned int tries = 0;
	bool ends = option(OPT_tables) && sim_one_in(8);

	if (ends)
		__atomic_store_n(&vcpu->run.immediate_exit, 1,
				 __ATOMIC_RELAXED);
	while (ensure_tables(vcpu, mode) && ++tries < 3) {
		vcpu->run.immediate_exit = 0;
		task_pause(MS, "better times");
	}
	if (ends)
		vcpu->run.immediate_exit = 0;
	vcpu->kvm->sregs = before;
}

/* ---- kvmfault_ensure_msrs() ---- */

static const struct named {		/* linux/kvm_para.h, and the TLFS */
	uint32_t msr;
	uint32_t length;		/* of what KVM has there */
	uint64_t align;			/* lower bits are others */
	uint64_t enabled;		/* any of them: it is on */
	bool once;			/* written when it is set, not later */
} named[] = {
	{ 0x4b564d01, 32, 2, 1, true },
	{ 0x12, 32, 2, 1, true },
	{ 0x4b564d00, 12, 1, ~0ULL, true },
	{ 0x11, 12, 1, ~0ULL, true },
	{ 0x4b564d02, 64, 64, 1, false },
	{ 0x4b564d03, 64, 64, 1, false },
	{ 0x4b564d04, 4, 4, 1, false },
	{ 0x40000001, 4096, 4096, 1, false },
	{ 0x40000021, 4096, 4096, 1, true },
	{ 0x40000073, 4096, 4096, 1, false },
	{ 0x40000082, 4096, 4096, 1, false },
	{ 0x40000083, 4096, 4096, 1, false },
	{ 0x174, 0, 4096, 0, false },	/* it names nothing */
};
#define NAMED (sizeof(named) / sizeof(*named))
#define MSRS 3U

/* Near the end of the page: the last byte, or some, may be in the next. */
static uint64_t place_in(const struct named *n, uint64_t page)
{
	uint64_t at = page + PAGE - n->length;

	if (!sim_one_in(3))
		at += 1 + (sim_one_in(2) ? 0 : sim_below(n->length + 1));
	return (at + n->align - 1) / n->align * n->align;
}

static void choose_msr(struct kvm_msr_entry *msr, uint64_t page)
{
	const struct named *n = &named[sim_below(NAMED)];

	if (sim_one_in(4))
		page = sim_one_in(2) ? NOWHERE : any_page();
	*msr = (struct kvm_msr_entry){
		.index = n->msr,
		.data = place_in(n, page),
	};
	msr->data |= sim_below((uint32_t)n->align);
	if (n->enabled == 1)
		msr->data = (msr->data & ~1ULL) | !sim_one_in(4);
	tell("MSR %#x: %#llx", msr->index, (unsigned long long)msr->data);
}

static bool check_named(const struct kvm_msr_entry *msr)
{
	const struct named *n = named;
	uint64_t first, at;

	while (n->msr != msr->index)
		n++;
	if (!(msr->data & n->enabled))
		return false;
	first = msr->data & ~(n->align - 1);
	for (at = first; at < first + n->length; at = (at | (PAGE - 1)) + 1) {
		unsigned int page;
		struct sim_memory *memory = shown_at(at, &page);

		/* What nobody has ends it, for this one. */
		if (!memory)
			break;
		if (!is_private(memory, at) && !is_lost(memory, page) &&
		    !present_bytes(memory, page))
			sim_fail("a page that an MSR names is left absent",
				 "MSR %#x: memory %u, page %u", msr->index,
				 memory->id, page);
	}
	return n->once;
}

void tables_msrs(uint64_t page)
{
	unsigned int i, count = 1 + sim_below(MSRS), injected;
	struct kvm_msr_entry msr[MSRS];
	bool again, once = false;
	struct quiet quiet;
	int err;

	for (i = 0; i < count; i++)
		choose_msr(&msr[i], page);
	injected = current->injected;
	quiet = quiet_begin();
	err = CALL(kvmfault_ensure_msrs, true,
		   kvmfault_ensure_msrs(world.vm, msr, count, &again));
	check_error("kvmfault_ensure_msrs", err, injected);
	if (err || !was_quiet(&quiet))
		return;
	for (i = 0; i < count; i++)
		once |= check_named(&msr[i]);
	if (once != again)
		sim_fail("MSRs are to be set again, or not",
			 "%d in place of %d", again, once);
}

#else

void tables_make(void)
{
}

void tables_reset(void)
{
}

void tables_note_fetch(const struct sim_memory *memory, uint64_t offset,
		       uint64_t length)
{
	(void)memory;
	(void)offset;
	(void)length;
}

void tables_note_read(const struct file *file, uint64_t offset, size_t length)
{
	(void)file;
	(void)offset;
	(void)length;
}

void tables_walk(struct sim_vcpu *vcpu, unsigned int page)
{
	(void)vcpu;
	(void)page;
}

void tables_msrs(uint64_t page)
{
	(void)page;
}

#endif

/* ---- who walks them ---- */

static bool is_two_dimensional(void)
{
#ifdef __x86_64__
	return kvm.two_dimensional;
#else
	return true;			/* there is no other */
#endif
}

static void check_answer(const char *what, const struct kvmfault_finding *found,
			 bool so, unsigned int injected)
{
	tell("%s: answer %u, error %d", what, found->support, found->error);
	if (found->support == KVMFAULT_SUPPORT_COULD_NOT_ASK &&
	    injected == current->injected)
		sim_fail("what could be asked is not known", "%s: %d", what,
			 found->error);
	if ((found->support == KVMFAULT_SUPPORT_YES && !so) ||
	    (found->support == KVMFAULT_SUPPORT_NO && so))
		sim_fail("what the kernel has is not known", "%s: %s", what,
			 so ? "it does have it" : "it has it not");
}

/* Who asks for everything. */
static void probe(void)
{
	const struct {
		enum kvmfault_feature feature;
		bool so;
	} known[] = {
		{ KVMFAULT_FEATURE_MEMORY_FAULT_INFO, true },
		{ KVMFAULT_FEATURE_USER_MEMORY2, true },
		{ KVMFAULT_FEATURE_GUEST_MEMFD, true },
		{ KVMFAULT_FEATURE_MEMORY_ATTRIBUTES, true },
		{ KVMFAULT_FEATURE_PRE_FAULT_MEMORY, kvm.prefault },
		{ KVMFAULT_FEATURE_EXIT_ON_EMULATION_FAILURE, true },
		{ KVMFAULT_FEATURE_ADDRESS_SPACES, true },
		{ KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING,
		  is_two_dimensional() },
		{ KVMFAULT_FEATURE_USERFAULT, kvm.abi == 1 },
		{ KVMFAULT_FEATURE_EXIT_ON_MISSING, kvm.abi == 2 },
		{ KVMFAULT_FEATURE_UFFD_DEVICE, !world.no_device },
		{ KVMFAULT_FEATURE_UFFD_SYSCALL, !world.no_uffd },
	};
	struct kvmfault_features found = { .size = sizeof(found) };
	unsigned int injected = current->injected, i;
	int err = CALL(kvmfault_probe, false,
		       kvmfault_probe(world.kvm_fd, world.vm_fd, &found));

	check_error("kvmfault_probe", err, injected);
	for (i = 0; i < sizeof(known) / sizeof(*known); i++)
		check_answer(kvmfault_feature_str(known[i].feature),
			     &found.feature[known[i].feature], known[i].so,
			     injected);
}

/* A second VM, which takes whatever delivery it can have, asks for each. */
static void ask_for_delivery(void)
{
	bool allowed = sim_one_in(2);
	const struct kvmfault_vm_options options = {
		.size = sizeof(options), .kvm_fd = world.kvm_fd,
		.page_size_max = PAGE,
		.allow = allowed ? KVMFAULT_ALLOW_MARKER_EXIT : 0,
	};
	struct kvmfault_delivery_report report = { .size = sizeof(report) };
	unsigned int injected = current->injected;
	struct kvmfault_vm *vm;
	int err = CALL(kvmfault_vm_new, false, kvmfault_vm_new(&options, &vm));

	if (err == -EMFILE && injected != current->injected)
		return;
	check_error("kvmfault_vm_new", err, injected);
	if (err)
		return;
	CALL(kvmfault_vm_delivery, false, kvmfault_vm_delivery(vm, &report));
	check_answer("an exit for what is missing",
		     &report.mode[KVMFAULT_DELIVERY_KERNEL_EXIT],
		     kvm.abi && kvm.abi != 3,
		     injected);
	if (!allowed && report.delivery == KVMFAULT_DELIVERY_MARKER_EXIT)
		sim_fail("a delivery that nobody has allowed", "%s",
			 kvmfault_delivery_str(report.delivery));
	check_answer("two-dimensional paging",
		     &report.mode[KVMFAULT_DELIVERY_MARKER_EXIT],
		     is_two_dimensional(), injected);
	CALL(kvmfault_vm_free, false, kvmfault_vm_free(vm));
}

void tables_ask(bool everything)
{
	if (everything)
		probe();
	else
		ask_for_delivery();
}
