-- Sets all keys of some items (a symbol, a series) by compare-and-set, each item on its own.
--
-- KEYS  [1] sentinel; then, per item, one key per slot
-- ARGV  ttl in seconds, tolerance in microseconds, alerts channel, number of slots;
--       per slot: channel ('' none), watched field ('' none), field names ('' a plain string);
--       per item: as_of_us, revision, one payload per slot
--
-- A hash's payload has its values in the order of the names. Names and values end in \31 each; an
-- empty value is a field that is not set. Integers arrive as text and go into the keys as they
-- came (tostring would print 1.78e+15); compared as numbers they are exact below 2^53.
--
-- Answers one byte for the sentinel (1 complete, 0 not), then one per item:
-- w written, r the same again (TTL refreshed), o older than what is there, f refused: the future.

local call, pcall_, gmatch = redis.call, redis.pcall, string.gmatch
local ttl, tolerance, alerts, width = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local slots = {}
for s = 1, width do
  local at = 4 + 3 * (s - 1)
  local slot = { channel = ARGV[at + 1], watched = ARGV[at + 2] }
  if ARGV[at + 3] ~= '' then
    slot.names = {}
    for name in gmatch(ARGV[at + 3], '([^\31]*)\31') do
      slot.names[#slot.names + 1] = name
    end
  end
  slots[s] = slot
end

-- The version of what is there: as_of_us, revision, watched value. A key that is not ours to read
-- (another type, another format) counts as absent, and is replaced.
local function held(slot, key, payload)
  if slot.names then
    local found = pcall_('HMGET', key, 'as_of_us', 'revision', slot.watched)
    return tonumber(found[1]), tonumber(found[2]), found[3]
  end
  local head = pcall_('GETRANGE', key, 0, 16)
  if type(head) == 'string' and #head == 17 and head:byte(1) == payload:byte(1) then
    local _, as_of, revision = struct.unpack('<Bi8i8', head)
    return as_of, revision, false
  end
  return nil, nil, false
end

local function write(slot, key, payload, as_of, revision, before)
  local after = nil
  if slot.names then
    local names, watched = slot.names, slot.watched
    local set, n, i = { 'as_of_us', as_of, 'revision', revision }, 4, 0
    for value in gmatch(payload, '([^\31]*)\31') do
      i = i + 1
      if value ~= '' then
        set[n + 1], set[n + 2] = names[i], value
        n = n + 2
        if names[i] == watched then
          after = value
        end
      end
    end
    call('DEL', key)
    for from = 1, n, 4000 do -- unpack() fails beyond some thousand values
      call('HSET', key, unpack(set, from, math.min(n, from + 3999)))
    end
    call('EXPIRE', key, ttl)
  else
    call('SET', key, payload, 'EX', ttl)
  end
  if slot.channel ~= '' and (slot.watched == '' or (after or false) ~= (before or false)) then
    call('PUBLISH', slot.channel, key)
  end
end

local function newer(as_of, revision, than_as_of, than_revision)
  return as_of > than_as_of or (as_of == than_as_of and revision > than_revision)
end

local clock = call('TIME')
local latest = tonumber(clock[1]) * 1000000 + tonumber(clock[2]) + tolerance
local sentinel = pcall_('GET', KEYS[1])
local complete = type(sentinel) == 'string' and sentinel:sub(1, 8) == 'complete'
local answer = { complete and '1' or '0' }

local arg, key = 4 + 3 * width, 1
while key < #KEYS do
  local as_of_text, revision_text = ARGV[arg + 1], ARGV[arg + 2]
  local as_of, revision = tonumber(as_of_text), tonumber(revision_text)
  local status
  if as_of > latest then
    status = 'f'
    call('PUBLISH', alerts, KEYS[key + 1])
  else
    -- The newest version under any of the keys counts: one that was evicted must not come back
    -- older than its siblings.
    local there = {}
    local top_as_of, top_revision = -math.huge, -math.huge
    for s = 1, width do
      local a, r, before = held(slots[s], KEYS[key + s], ARGV[arg + 2 + s])
      there[s] = { a, r, before }
      if a and r and newer(a, r, top_as_of, top_revision) then
        top_as_of, top_revision = a, r
      end
    end
    if newer(top_as_of, top_revision, as_of, revision) then
      status = 'o'
    else
      status = 'r'
      for s = 1, width do
        local a, r, before = there[s][1], there[s][2], there[s][3]
        if a == as_of and r == revision then
          call('EXPIRE', KEYS[key + s], ttl)
        else
          status = 'w'
          write(slots[s], KEYS[key + s], ARGV[arg + 2 + s], as_of_text, revision_text, before)
        end
      end
    end
  end
  answer[#answer + 1] = status
  arg, key = arg + 2 + width, key + width
end

return table.concat(answer)
