// Work items of attention: some query rows of one sequence or, of a gang, one token of each member; for one kv head. A row is a token and a head of
// the kv head's group.

static inline int group_of(const AttentionCall& c) { return c.heads / c.cache->kv_heads; }
// Tokens of a work item that holds up to `rows` rows
static inline int tokens_of(const AttentionCall& c, int rows) { const int g = group_of(c); return g >= rows ? 1 : rows / g; }
// Work items of a gang, per head: blocks of the query tokens of a sequence that is alone, one for several sequences
static inline int blocks_of(const AttentionCall& c, int gang, int block) {
  const int32_t* first = c.gangs->first + gang;
  if (first[1] - first[0] > 1) return 1;
  const int32_t s = c.gangs->members[first[0]];
  return (c.step->starts[s + 1] - c.step->starts[s] + block - 1) / block;
}
static inline int items_of(const AttentionCall& c, int block) {
  int items = 0;
  for (int g = 0; g < c.gangs->count; g++) items += blocks_of(c, g, block);
  return items * c.cache->kv_heads;
}

struct AttentionItem {
  int head, count, shared;     // kv head; sequences; pages that they all begin with
  const int32_t* who;
  int begin;                   // first query token of the sequence, when it is alone
  int tokens[kGang];           // of each sequence
  int oldest[kGang], newest[kGang];  // first and last position that they see

  AttentionItem(const AttentionCall& c, int item, int block) {
    const Step& step = *c.step;
    head = item % c.cache->kv_heads;  // neighbours share pages
    int which = item / c.cache->kv_heads, gang = 0;
    for (;; gang++) {
      const int blocks = blocks_of(c, gang, block);
      if (which < blocks) break;
      which -= blocks;
    }
    who = c.gangs->members + c.gangs->first[gang];
    count = c.gangs->first[gang + 1] - c.gangs->first[gang];
    shared = count > 1 && c.window == 0 ? c.gangs->shared[gang] : 0;
    begin = count > 1 ? 0 : which * block;
    for (int m = 0; m < count; m++) {
      const int s = who[m], all = step.starts[s + 1] - step.starts[s], end = count > 1 || begin + block > all ? all : begin + block, before = step.lengths[s] - all;
      tokens[m] = end - begin;
      newest[m] = before + end - 1;
      oldest[m] = c.window > 0 && before + begin - c.window + 1 > 0 ? before + begin - c.window + 1 : 0;
    }
  }
};
