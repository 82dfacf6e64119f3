-- Goes on behind what a node has, when Redis has lost the end of the log.
-- KEYS: stream, log
-- ARGV: identity, the last id as the node saw it, id of the new entry, its header
if redis.replicate_commands then redis.replicate_commands() end
if redis.call('HGET', KEYS[2], 'id') ~= ARGV[1] then return 0 end
local last = '0-0'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then last = info[at + 1] end
  end
end
if last ~= ARGV[2] then return 0 end
redis.call('XADD', KEYS[1], ARGV[3], 'h', ARGV[4], 'k', 'log')
return 1
