-- Appends a batch to the log, once. One step of Redis: nothing comes between.
-- KEYS: stream, log, feeds, batch, one key for each claim
-- ARGV: identity, node, number, deadline, keep, how many messages, checks, states, claims, which
--   run of Redis this is (or nothing), how far the node has the log (id, step); then
--   each message's payload; each check's feed and revision; each state's feed, revision and
--   payload; each claim's fingerprint, place of its first message or -1, revision, rest
if redis.replicate_commands then redis.replicate_commands() end
local stream, log, feeds, batch = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local node, number, keep = ARGV[2], ARGV[3], ARGV[5]
local messages, checks, states, claims = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])

local time = redis.call('TIME')
local now = time[1] .. string.format('%06d', tonumber(time[2]))
local identity = redis.call('HGET', log, 'id')
if identity ~= ARGV[1] or redis.call('EXISTS', stream) == 0 then return {'other', now} end
-- Redis was started anew, perhaps without the log's end, and nobody has gone on behind it yet.
if ARGV[10] ~= '' and redis.call('HGET', log, 'run') ~= ARGV[10] then return {'other', now} end

local info = redis.call('XINFO', 'STREAM', stream)
local last
for at = 1, #info, 2 do
  if info[at] == 'last-generated-id' then last = info[at + 1] end
end
local head, step = string.match(last, '^(%d+)-(%d+)$')
head, step = tonumber(head), tonumber(step)
-- The end of the log is lost.
local known, known_step = tonumber(ARGV[11]), tonumber(ARGV[12])
if head < known or (head == known and step < known_step) then return {'other', now} end

-- A repetition, whose first answer was lost, or one that comes after its successor.
local done = redis.call('GET', batch)
if done then
  local last, outcome = string.match(done, '^(%d+) (.*)$')
  if last == number then return {'done', now, outcome} end
  if tonumber(last) > tonumber(number) then return {'late', now} end
end
-- Whoever waited for it has been told by now.
if tonumber(now) > tonumber(ARGV[4]) then return {'late', now} end

local found = {'once', now}
for claim = 1, claims do
  local receipt = redis.call('GET', KEYS[4 + claim])
  if receipt then
    found[#found + 1] = tostring(claim - 1)
    found[#found + 1] = receipt
  end
end
if #found > 2 then return found end

local at = 12 + messages
for check = 1, checks do
  local rev = redis.call('HGET', feeds, ARGV[at + 1]) or '0'
  if rev ~= ARGV[at + 2] then return {'stale', now, last} end
  at = at + 2
end

local first = head + 1
local suffix = ' ' .. now .. ' ' .. node .. ':' .. number
local function append(id, kind, payload)
  redis.call('XADD', stream, id, 'h', last .. suffix, kind, payload)
  last = id
end
for message = 1, messages do
  head = head + 1
  step = 0
  append(string.format('%.0f-0', head), 'm', ARGV[12 + message])
end
for state = 1, states do
  step = step + 1
  append(string.format('%.0f-%.0f', head, step), 's', ARGV[at + 3])
  redis.call('HSET', feeds, ARGV[at + 1], ARGV[at + 2])
  redis.call('HSET', feeds, ARGV[at + 1] .. ':', ARGV[at + 3])
  at = at + 3
end
if messages + states > 0 then redis.call('XTRIM', stream, 'MAXLEN', '~', keep) end

for claim = 1, claims do
  local value = ARGV[at + 3]
  if ARGV[at + 2] ~= '-1' then value = string.format('%.0f', first + tonumber(ARGV[at + 2])) end
  local receipt = ARGV[at + 1] .. ' ' .. value .. ' ' .. ARGV[at + 4] .. ' ' .. now
  redis.call('SET', KEYS[4 + claim], receipt, 'EX', '86400')
  at = at + 4
end
local outcome = string.format('%.0f', first) .. ' ' .. last .. ' ' .. now
redis.call('SET', batch, number .. ' ' .. outcome, 'EX', '3600')
return {'done', now, outcome}
