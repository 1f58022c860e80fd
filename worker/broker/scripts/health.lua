-- Record in arq's form that a worker is healthy, once for each of its queues.
--
-- KEYS  the queues. A cluster gets one a call
-- ARGV[1]  id of the worker     ARGV[2]  ms after which the records expire
-- ARGV[3]  the record, but for the depth at its end
-- ARGV[4]  the key of the record of all workers ('' for one for each queue)
local id, lifetime, record, arq_key = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
for _, queue in ipairs(KEYS) do
    local with_depth = record .. string.format('%.0f', redis.call('ZCARD', queue))
    redis.call('SET', queue .. ':health-check:' .. id, with_depth, 'PX', lifetime)
    redis.call('SET', arq_key ~= '' and arq_key or queue .. ':health-check', with_depth, 'PX', lifetime)
    redis.call('SADD', queue .. ':health-checks', id)
    redis.call('PEXPIRE', queue .. ':health-checks', lifetime)
end
return 1
