"""What runs inside Redis, each as one atomic step: in Lua, with a digest by which Redis remembers it.

Every script keeps to keys of one cluster slot. A step that would need two (a list and its user, one user and another)
is made of several scripts, of which each may be repeated; `redis` puts them in an order that loses nothing.
"""

from hashlib import sha1
from typing import NamedTuple


class Script(NamedTuple):
    """A script and the digest under which Redis knows it once it was loaded."""

    source: str
    digest: str


def _script(source: str) -> Script:
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


# The rules are those of `history.merge`; here they must run inside Redis. KEYS: the list, the set of trimmed ids.
# ARGV: cap, milliseconds to keep a history, milliseconds to keep an id, then `h` to read the history back, `m` where
# the entries come from another user (so that equal ones are the same, as in `history.newcomers`) or nothing, then the
# new entries. An entry is four lines: layout, timestamp, event id (as JSON, or nothing), payload.
APPEND = _script(r"""
local cap, ttl, dedup = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local entries = redis.call('LRANGE', KEYS[1], 0, -1)
local stored, head = #entries, 1
local late, trimmed, accepted, outcomes, added, stored_lines = false, false, false, {}, {}, nil
local twins = {} -- for a merge: how often each stored entry may still be met again
if ARGV[4] == 'm' then
  for i = 1, stored do twins[entries[i]] = (twins[entries[i]] or 0) + 1 end
end

local function read(entry)
  local timestamp, id = string.match(entry, '^1\n([^\n]*)\n([^\n]*)\n')
  if not timestamp then
    error({err = 'LAYOUT of a stored event is not 1, the only one that this version of the service understands'})
  end
  return tonumber(timestamp), id
end

local function trim()
  local _, id = read(entries[head])
  if id ~= '' then
    redis.call('ZADD', KEYS[2], now, id)
    trimmed = true
  end
  head = head + 1
end

-- An id line starts with a quote, no other line does, and JSON has no raw line breaks: so a plain search of all stored
-- entries finds ids and nothing else, in half the time of taking entries apart (0.7, not 1.2 ms, at 1,000 events).
local function is_known(id)
  if not stored_lines then stored_lines = table.concat(entries, '\n') end
  if added[id] or string.find(stored_lines, '\n' .. id .. '\n', 1, true) then return true end
  local trimmed_at = redis.call('ZSCORE', KEYS[2], id)
  return trimmed_at and tonumber(trimmed_at) > now - dedup
end

local function push(first)
  for i = first, #entries, 1000 do -- Lua passes some 8,000 arguments at most
    redis.call('RPUSH', KEYS[1], unpack(entries, i, math.min(i + 999, #entries)))
  end
end

while #entries - head + 1 > cap do trim() end
for i = 5, #ARGV do
  local timestamp, id = read(ARGV[i])
  if twins[ARGV[i]] and twins[ARGV[i]] > 0 then
    twins[ARGV[i]] = twins[ARGV[i]] - 1
    outcomes[#outcomes + 1] = 'd'
  elseif id ~= '' and is_known(id) then
    outcomes[#outcomes + 1] = 'd'
  else
    local low, high = head, #entries + 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      if timestamp < read(entries[middle]) then high = middle else low = middle + 1 end
    end
    if low == head and #entries - head + 1 == cap then
      outcomes[#outcomes + 1] = 'o'
    else
      if low <= stored then late = true end
      table.insert(entries, low, ARGV[i])
      added[id] = true
      if #entries - head + 1 > cap then trim() end
      outcomes[#outcomes + 1] = 'a'
      accepted = true
    end
  end
end

-- At its memory limit Redis refuses a script's first write, if that needs memory, and none after it. So one that needs
-- memory comes first, while nothing is changed yet.
if late then
  push(#entries)
  redis.call('DEL', KEYS[1])
  push(head)
else
  push(math.max(head, stored + 1))
  if head > 1 then redis.call('LTRIM', KEYS[1], math.min(head - 1, stored), -1) end
end
if accepted then redis.call('PEXPIRE', KEYS[1], ttl) end
if trimmed then redis.call('PEXPIRE', KEYS[2], dedup) end
if stored_lines then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - dedup) end

local kept = {}
if ARGV[4] == 'h' then
  for i = head, #entries do kept[#kept + 1] = entries[i] end
end
return {table.concat(outcomes), kept}
""")

# KEYS: the list, the trimmed ids, the frozen lists of a user who leaves. ARGV: the digest of an earlier look and how
# many events it saw, which are removed if only later ones have come since. Whether they were, then all that is there
# now with its digest.
DEPART = _script("""
local function look(last)
  local events = last >= 0 and redis.call('LRANGE', KEYS[1], 0, last) or {}
  local trimmed = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
  local lists = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
  return {redis.sha1hex(cmsgpack.pack({events, trimmed, lists})), events, trimmed, lists}
end

local removed = 0
if ARGV[1] ~= '' and look(ARGV[2] - 1)[1] == ARGV[1] then
  redis.call('LTRIM', KEYS[1], ARGV[2], -1)
  redis.call('UNLINK', KEYS[2], KEYS[3])
  removed = 1
end
local found = look(redis.call('LLEN', KEYS[1]) - 1)
return {removed, found[1], found[2], found[3], found[4]}
""")

# KEYS: the trimmed ids, the frozen lists of a user who takes over those of another. ARGV: milliseconds to keep an id,
# how many ids, then each with the time at which it was trimmed, then each list with the time at which it expires.
ADOPT = _script("""
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ids = tonumber(ARGV[2])
local last = 0
for i = 3, #ARGV, 2 do
  local key, score = KEYS[2], tonumber(ARGV[i + 1])
  if (i - 3) / 2 < ids then key = KEYS[1] else last = math.max(last, score) end
  local known = tonumber(redis.call('ZSCORE', key, ARGV[i]))
  if not known or known < score then redis.call('ZADD', key, score, ARGV[i]) end
end
if ids > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
if last > now + redis.call('PTTL', KEYS[2]) then redis.call('PEXPIREAT', KEYS[2], math.ceil(last)) end
""")

# KEYS: the list, the trimmed ids, the frozen lists of a user who is forgotten. ARGV: the ids of lists that are gone.
# Whether there was anything, and the ids of lists that are not.
FORGET = _script("""
for i = 1, #ARGV do redis.call('ZREM', KEYS[3], ARGV[i]) end
local removed = redis.call('UNLINK', KEYS[1], KEYS[2])
return {removed, redis.call('ZRANGE', KEYS[3], 0, -1)}
""")

# KEYS: a frozen list, the frozen lists of its user; each script takes its own from one end, and OWN_AND_KEEP both.
# ARGV: its id, payload, position, milliseconds to keep it.
_OWN = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[#KEYS], '-inf', now)
redis.call('ZADD', KEYS[#KEYS], now + ARGV[4], ARGV[1])
if redis.call('PTTL', KEYS[#KEYS]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[#KEYS], ARGV[4]) end
"""
_KEEP = """
redis.call('HSET', KEYS[1], 'payload', ARGV[2], 'at', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
"""
OWN, KEEP, OWN_AND_KEEP = _script(_OWN), _script(_KEEP), _script(_OWN + _KEEP)

# KEYS: a frozen list. ARGV: by how much. Its payload, and its position before.
ADVANCE = _script("""
local payload = redis.call('HGET', KEYS[1], 'payload')
if not payload then return {false, 0} end
return {payload, redis.call('HINCRBY', KEYS[1], 'at', ARGV[1]) - ARGV[1]}
""")

# KEYS: a HyperLogLog. ARGV: milliseconds to keep it, then new members.
COUNT_DISTINCT = _script("""
for i = 2, #ARGV, 1000 do -- Lua passes some 8,000 arguments at most
  redis.call('PFADD', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return redis.call('PFCOUNT', KEYS[1])
""")

# KEYS: the last version, item id -> `1` or `0` and its attributes, item ids by version.
CHANGE_ITEM = _script("""
local attributes = ARGV[3]
if attributes == '' then attributes = string.sub(redis.call('HGET', KEYS[2], ARGV[1]) or '', 2) end
local version = redis.call('INCR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. attributes)
redis.call('ZADD', KEYS[3], version, ARGV[1])
return version
""")

ITEM_CHANGES = _script("""
local changed = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[1], '+inf')
local out = {tonumber(redis.call('GET', KEYS[1]) or 0)}
for _, id in ipairs(changed) do
  out[#out + 1] = id
  out[#out + 1] = redis.call('HGET', KEYS[2], id)
end
return out
""")

BY_DIGEST = {script.digest: script for script in tuple(globals().values()) if isinstance(script, Script)}
