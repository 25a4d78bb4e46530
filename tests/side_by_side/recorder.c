/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A plugin for mptcpd that writes down what it is told, one line per callback, into the
 * file that RECORD names.  recorder.py is its counterpart for ours.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <mptcpd/plugin.h>

#define STRING_OF(name) #name
#define STRING(name) STRING_OF(name)

static void record(char const *format, ...)
{
        FILE *const file = fopen(getenv("RECORD"), "a");
        va_list arguments;

        if (!file)
                return;
        fprintf(file, "%s: ", STRING(NAME));
        va_start(arguments, format);
        vfprintf(file, format, arguments);
        va_end(arguments);
        fputc('\n', file);
        fclose(file);
}

/* Two buffers: a callback names two addresses at most. */
static char const *ip(struct sockaddr const *address)
{
        static char text[2][INET6_ADDRSTRLEN];
        static int turn;
        void const *const raw = address->sa_family == AF_INET
                ? (void const *)&((struct sockaddr_in const *)address)->sin_addr
                : (void const *)&((struct sockaddr_in6 const *)address)->sin6_addr;

        turn = !turn;
        return inet_ntop(address->sa_family, raw, text[turn], sizeof text[turn]);
}

static void new_connection(mptcpd_token_t token, struct sockaddr const *local,
                           struct sockaddr const *remote, bool server_side, struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("new_connection %s %s server_side=%d", ip(local), ip(remote), server_side);
}

static void connection_established(mptcpd_token_t token, struct sockaddr const *local,
                                   struct sockaddr const *remote, bool server_side,
                                   struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("connection_established %s %s server_side=%d", ip(local), ip(remote), server_side);
}

static void connection_closed(mptcpd_token_t token, struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("connection_closed");
}

static void new_address(mptcpd_token_t token, mptcpd_aid_t id, struct sockaddr const *address,
                        struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("new_address %s id=%d", ip(address), id);
}

static void address_removed(mptcpd_token_t token, mptcpd_aid_t id, struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("address_removed id=%d", id);
}

static void new_subflow(mptcpd_token_t token, struct sockaddr const *local,
                        struct sockaddr const *remote, bool backup, struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("new_subflow %s %s backup=%d", ip(local), ip(remote), backup);
}

static void subflow_closed(mptcpd_token_t token, struct sockaddr const *local,
                           struct sockaddr const *remote, bool backup, struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("subflow_closed %s %s backup=%d", ip(local), ip(remote), backup);
}

static void subflow_priority(mptcpd_token_t token, struct sockaddr const *local,
                             struct sockaddr const *remote, bool backup, struct mptcpd_pm *pm)
{
        (void)token, (void)pm;
        record("subflow_priority %s %s backup=%d", ip(local), ip(remote), backup);
}

static void new_local_address(struct mptcpd_interface const *interface,
                              struct sockaddr const *address, struct mptcpd_pm *pm)
{
        (void)interface, (void)pm;
        record("new_local_address %s", ip(address));
}

static struct mptcpd_plugin_ops const ops = {
        .new_connection = new_connection,
        .connection_established = connection_established,
        .connection_closed = connection_closed,
        .new_address = new_address,
        .address_removed = address_removed,
        .new_subflow = new_subflow,
        .subflow_closed = subflow_closed,
        .subflow_priority = subflow_priority,
        .new_local_address = new_local_address,
};

static int init(struct mptcpd_pm *pm)
{
        (void)pm;
        return mptcpd_plugin_register_ops(STRING(NAME), &ops) ? 0 : -1;
}

static void leave(struct mptcpd_pm *pm)
{
        (void)pm;
}

MPTCPD_PLUGIN_DEFINE(NAME, "Writes down what it is told", MPTCPD_PLUGIN_PRIORITY_DEFAULT, init,
                     leave)
