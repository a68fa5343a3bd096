#include "runs.h"
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv)
{
	static bool all[OPTION_COUNT], every[STEP_COUNT];
	unsigned long long from = strtoull(argv[1], 0, 0), n = strtoull(argv[2], 0, 0), i;
	struct plan plan; struct outcome o; unsigned long bad = 0;
	memset(all, 1, sizeof all); memset(every, 1, sizeof every);
	windows_init();
	telling = argc > 3; telling_atomics = argc > 4;
	if (telling) setvbuf(stdout, 0, _IOLBF, 0);
	for (i = from; i < from + n; i++) {
		struct schedule s = { .strategy = i % 3 == 2 ? PCT : RANDOM_WALK, .seed = i, .every = 1U << i % 7, .depth = 1 + i % 5, .length = 3000 };
		plan_from_seed(&plan, i, all, every);
		if (telling) plan_write(&plan, stdout);
		fprintf(stderr, "\r%llu ", i);
		run_plan(&plan, &s, &o);
		if (o.kind[0]) { bad++; printf("%llu: %s: %s\n", i, o.kind, o.text); }
	}
	printf("%lu of %llu\n", bad, n);
	return 0;
}
